"""Reads jobs through a gateway, as the records that the commands print when they read from Postgres."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from trainwire.cli.gateway_jobs import GatewayJobs
from trainwire.client.job import Job as ClientJob
from trainwire.schemas.events import LogLine
from trainwire.schemas.filters.job_fields import Field
from trainwire.schemas.non_finite import Number
from trainwire.schemas.times import to_datetime
from trainwire.stores.postgres.checkpoints import CheckpointFile
from trainwire.stores.postgres.deliveries import JobDelivery, SinkHealth
from trainwire.stores.postgres.jobs.job_lookup import Job
from trainwire.stores.rows.command_rows import StoredPoint
from trainwire.stores.rows.log_pages import LineFilter

PAGE_JOBS: Final = 200
PAGE_LINES: Final = 5000
PAGE_POINTS: Final = 1000
PAGE_CHECKPOINTS: Final = 1000


class JobReport(NamedTuple):
    """One job as the gateway describes it; `removed_rows` has the last removed `seq` of each kind of rows."""

    job: Job
    last_metrics: dict[str, Number]
    last_checkpoint: str | None
    removed_rows: dict[str, int]
    warning: str | None


class GatewayReads:
    """Reads jobs, log lines, points and checkpoints through a gateway. Raises `ClientError`."""

    def __init__(self, remote: GatewayJobs) -> None:
        self._json = remote.gateway.json

    def jobs(
        self, query: Mapping[str, Any], fields: Mapping[str, Field], limit: int
    ) -> tuple[list[Job], dict[int, dict[str, Any]]]:
        """Return up to `limit` jobs that match the parameters of `GET /jobs`, and job -> values of `fields`."""
        found: list[Job] = []
        values: dict[int, dict[str, Any]] = {}
        cursor: str | None = None
        while len(found) < limit:
            wanted = {"limit": min(PAGE_JOBS, limit - len(found)), "cursor": cursor, "details": "true"}
            page = self._json("/jobs", {**query, **wanted})
            for item in page["items"]:
                found.append(_job(item))
                values[item["id"]] = {name: _value(field, item["columns"][name]) for name, field in fields.items()}
            cursor = page["next"]
            if cursor is None:
                break
        return found, values

    def report(self, job_id: int) -> JobReport:
        """Return one job with its newest metrics and its newest usable checkpoint."""
        item = self._json(f"/jobs/{job_id}")
        return JobReport(
            _job(item), item["last_metrics"], item["last_checkpoint"], item["removed_rows"], item["warning"]
        )

    def completeness(self, job_id: int) -> dict[str, Any]:
        """Return the sum of a job's messages as a document (see `Completeness.document`)."""
        return self._json(f"/jobs/{job_id}/completeness")

    def provenance(self, job_id: int) -> dict[str, Any]:
        """Return the command, code version and machine of a job's newest attempt."""
        return dict(self._json(f"/jobs/{job_id}/provenance")["items"])

    def deliveries(self, job_id: int) -> dict[str, tuple[JobDelivery, SinkHealth]]:
        """Return sink -> delivery of a job and health of the sink."""
        items = self._json(f"/jobs/{job_id}/deliveries")["items"]
        return {
            item["sink"]: (
                msgspec.convert(item["delivery"], JobDelivery),
                msgspec.convert(item["health"], SinkHealth),
            )
            for item in items
        }

    def checkpoints(self, job_id: int, *, only_problems: bool = False) -> list[CheckpointFile]:
        """Return a job's checkpoints in the order of `seq`, or only those that are missing or different."""
        found: list[CheckpointFile] = []
        while True:
            before = found[0].seq if found else None
            query = {"before": before, "problems": "true" if only_problems else None}
            items = self._json(f"/jobs/{job_id}/checkpoints", query)["items"]
            found[:0] = [_checkpoint(item) for item in items]
            if len(items) < PAGE_CHECKPOINTS:
                return found

    def newest_points(self, job_id: int, limit: int) -> list[StoredPoint]:
        """Return the last `limit` points of a job, oldest first."""
        found: list[StoredPoint] = []
        before: int | None = None
        while len(found) < limit:
            query = {"before": before, "limit": min(PAGE_POINTS, limit - len(found))}
            page = self._json(f"/jobs/{job_id}/metrics/rows", query)
            found[:0] = msgspec.convert(page["items"], list[StoredPoint])
            before = page["next"]
            if before is None:
                break
        return found

    def newest_logs(self, job: ClientJob, wanted: LineFilter, limit: int) -> list[LogLine]:
        """Return the last `limit` matching lines, oldest first."""
        found: list[LogLine] = []
        before: int | None = None
        while len(found) < limit:
            lines, before = _lines(job, wanted, limit - len(found), None, before)
            found[:0] = lines
            if before is None:
                break
        return found[-limit:] if limit else []

    def logs_after(self, job: ClientJob, wanted: LineFilter, seq: int, limit: int) -> list[LogLine]:
        """Return the first matching lines after `seq`, at most about `limit`, oldest first."""
        found: list[LogLine] = []
        after: int | None = seq
        while after is not None and len(found) < limit:
            lines, after = _lines(job, wanted, limit - len(found), after, None)
            found += lines
        return found


def _lines(
    job: ClientJob, wanted: LineFilter, limit: int, after: int | None, before: int | None
) -> tuple[list[LogLine], int | None]:
    """Return a page of matching lines after or before a `seq`, and the position of the next page, or None."""
    # The gateway ignores the case of letters in a text; the command does not.
    page = job.log_page(
        log_type=wanted.log_type,  # type: ignore[arg-type]
        attempt=wanted.attempt,
        search=wanted.text,
        limit=PAGE_LINES if wanted.text else min(PAGE_LINES, limit),
        after=after,
        before=before,
    )
    return [line for line in page.lines if wanted.text is None or wanted.text in line.text], page.next


def _job(item: Mapping[str, Any]) -> Job:
    """Convert the gateway's document of a job to the record of a row of training_jobs."""
    rows = item["rows"]
    counts = {
        "last_log_seq": rows["logs"],
        "last_metric_seq": rows["metrics"],
        "last_checkpoint_seq": rows["checkpoints"],
    }
    return msgspec.convert({**item, **counts}, Job, strict=False)


def _checkpoint(item: Mapping[str, Any]) -> CheckpointFile:
    named = {
        "kind": item["checkpoint_kind"],
        "logged_at": to_datetime(item["ts"]),
        "is_best": item.get("was_best", False),
    }
    absent = dict.fromkeys(CheckpointFile.__struct_fields__)
    return msgspec.convert({**absent, **item, **named}, CheckpointFile)


def _value(field: Field, value: Any) -> Any:
    return datetime.fromisoformat(value) if field.type == "time" and value is not None else value
