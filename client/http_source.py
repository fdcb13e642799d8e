"""Reads jobs from a gateway over HTTP, with Python's standard library only."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from http.client import HTTPException, HTTPResponse
from typing import Any, Final

import msgspec

from trainwire.client.errors import ClientError, GatewayUnavailable
from trainwire.client.gateway import Gateway
from trainwire.client.records import CheckpointInfo, CompletenessInfo, JobInfo, R, StopInfo, record
from trainwire.client.source import (
    MOST_READS_OF_NAMES,
    PAGE_LINES,
    Candidates,
    JobPage,
    JobQuery,
    LogPage,
    LogQuery,
    MetricNames,
)
from trainwire.schemas.completeness_states import may_grow
from trainwire.schemas.events import LogLine
from trainwire.schemas.metric_download import (
    LENGTH_BYTES,
    MetricBlock,
    WrongBlock,
    decode_frame,
    joined_names,
    split_names,
)
from trainwire.schemas.wire.messages import FINISHED

PAGE_NAMES: Final = 10_000
PAGE_CHECKPOINTS: Final = 1000
CUT_CHARS: Final = 64 * 1024
"""The gateway cuts longer lines, except on a page of one line."""
MAX_NAMES_CHARS: Final = 2000
"""Longest list of names that is sent to the gateway; with a longer one, all metrics are read and filtered here.

A character has up to twelve in an address, of which nginx accepts 8 KB.
"""
RECONNECT_S: Final = 1.0
SETTLE_S: Final = 10.0
"""Longest time for which `follow` waits for rows that are stored after the completion."""
SETTLE_POLL_S: Final = 0.1
_ENDS: Final = ("training_complete", "training_error")


class HttpSource:
    """Answers the client's requests (`Source`) from the gateway at `url`, with an access token if one is given."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self._gateway = Gateway(url, token)
        self._url = self._gateway.url
        self._json = self._gateway.json

    def __repr__(self) -> str:
        return f"HttpSource({self._url!r})"

    def jobs(self, query: JobQuery, limit: int, cursor: str | None) -> JobPage:
        fields = {"filter": query.filter, "sort": query.sort, "columns": ",".join(query.columns) or None}
        page = self._json("/jobs", {**fields, "limit": limit, "cursor": cursor})
        return JobPage([self._record(JobInfo, item) for item in page["items"]], page["next"], page.get("total"))

    def fields(self) -> dict[str, list[str]]:
        return self._json("/jobs/fields")

    def find(self, reference: str) -> Candidates:
        found = self._json("/jobs/resolve", {"reference": reference})
        with self._same_version():
            jobs = [(item["id"], item["name"], item["status"]) for item in found["items"]]
            return Candidates(jobs, found["total"], found.get("also_named"))  # absent in older gateways

    def job(self, job_id: int) -> JobInfo:
        return self._record(JobInfo, self._json(f"/jobs/{job_id}"))

    def stop(self, job_id: int, by: str | None, reason: str) -> StopInfo:
        """Ask the trainers of a job to stop. A gateway that requires tokens replaces `by` by the token's name."""
        return self._record(
            StopInfo,
            self._json(f"/jobs/{job_id}/stop", method="POST", document={"reason": reason, "by": by or ""}),
        )

    def metrics(self, job_id: int, names: Sequence[str]) -> Iterator[MetricBlock]:
        path = f"/jobs/{job_id}/metrics/download"
        shown = joined_names(names)
        is_exact = split_names([shown]) == list(dict.fromkeys(names)) and len(shown) <= MAX_NAMES_CHARS
        with self._gateway.open(path, {"names": (shown or None) if is_exact else None}) as answer:
            while True:
                block = self._block(answer)
                if not block.rows:
                    return
                if not is_exact:
                    wanted = {name: found for name, found in block.metrics.items() if name in names}
                    block = msgspec.structs.replace(block, metrics=wanted)
                yield block

    def metric_names(self, job_id: int) -> MetricNames:
        path, is_complete = f"/jobs/{job_id}/metrics/names", False
        for _ in range(MOST_READS_OF_NAMES):
            is_complete = self._json(path, {"limit": 1})["complete"]
            if is_complete:
                break
        names: list[str] = []
        after: str | None = ""
        while after is not None:
            page = self._json(path, {"limit": PAGE_NAMES, "after": after})
            names += page["items"]
            after = page["next"]
        return MetricNames(names, is_complete)

    def provenance(self, job_id: int, attempt: int | None) -> dict[str, Any]:
        return dict(self._json(f"/jobs/{job_id}/provenance", {"attempt": attempt})["items"])

    def completeness(self, job_id: int) -> CompletenessInfo:
        return self._record(CompletenessInfo, self._json(f"/jobs/{job_id}/completeness"))

    def logs(self, job_id: int, query: LogQuery, after: int, limit: int = PAGE_LINES) -> LogPage:
        """Return the first matching lines with `seq` > `after`, at most `limit`, untruncated.

        The gateway truncates very long lines on a page of several lines; each such line is requested again on a
        page of its own.
        """
        page = self._json(f"/jobs/{job_id}/logs", {**query._asdict(), "after": after, "limit": limit})
        lines = self._lines(job_id, page)
        if scanned := page.get("scanned"):
            return LogPage(lines, scanned["last_seq"])
        return LogPage(lines, lines[-1].seq if len(lines) == limit else None)

    def logs_before(self, job_id: int, query: LogQuery, before: int, limit: int) -> LogPage:
        page = self._json(f"/jobs/{job_id}/logs", {**query._asdict(), "before": before, "limit": limit})
        lines = self._lines(job_id, page)
        if scanned := page.get("scanned"):
            return LogPage(lines, scanned["first_seq"])
        return LogPage(lines, lines[0].seq if len(lines) == limit else None)

    def seq_at(self, job_id: int, at: datetime) -> int | None:
        items = self._json(f"/jobs/{job_id}/logs", {"at": at.isoformat(), "limit": 1})["items"]
        return items[0]["seq"] if items else None

    def _lines(self, job_id: int, page: dict[str, Any]) -> list[LogLine]:
        lines = []
        for item in page["items"]:
            whole = item
            if len(item["text"]) >= CUT_CHARS:
                path = f"/jobs/{job_id}/logs"
                whole = self._json(path, {"after": item["seq"] - 1, "limit": 1})["items"][0]
            lines.append(msgspec.convert(whole, LogLine))
        return lines

    def checkpoints(self, job_id: int) -> list[CheckpointInfo]:
        found: list[CheckpointInfo] = []
        while True:
            before = found[0].seq if found else None
            items = self._json(f"/jobs/{job_id}/checkpoints", {"before": before})["items"]
            found = [self._record(CheckpointInfo, item) for item in items] + found
            if len(items) < PAGE_CHECKPOINTS:
                return found

    def checkpoint_url(self, job_id: int, seq: int) -> str:
        return str(self._json(f"/jobs/{job_id}/checkpoints/{seq}/url")["url"])

    def follow(self, job_id: int) -> Iterator[dict[str, Any]]:
        """Yield the events of a job until it has ended; reconnect and continue if the connection ends.

        The last rows may come after the event of the end, for they are stored by other drains; they are awaited.
        `GatewayUnavailable` is raised only before the first event, because a gateway may restart later.
        """
        position: str | None = None
        while True:
            try:
                with self._gateway.open(f"/jobs/{job_id}/events", {"after": position}) as answer:
                    rows: list[int] | None = None
                    for found, event in _events(answer):
                        position = found or position
                        yield event
                        rows = _rows_at_end(event) or rows
                        if event["type"] in _ENDS:
                            rows = self._settled_rows(job_id)
                        has_all = rows and position and _has_all(position, rows)
                        if has_all or event["type"] == "training_deleted":
                            return
            except GatewayUnavailable:
                if position is None:
                    raise
            except (OSError, HTTPException):  # the connection ended within an event
                pass
            time.sleep(RECONNECT_S)

    def _settled_rows(self, job_id: int) -> list[int]:
        """Return the numbers of rows of an ended job, once no more are expected, or after `SETTLE_S` seconds."""
        deadline = time.monotonic() + SETTLE_S
        while may_grow(self._json(f"/jobs/{job_id}/completeness")):
            if time.monotonic() > deadline:  # the trainer was killed: the rest of its spool may be sent much later
                break
            time.sleep(SETTLE_POLL_S)
        return _rows(self._json(f"/jobs/{job_id}"))

    def close(self) -> None:
        """Do nothing, because no connection stays open between requests."""

    def _block(self, answer: HTTPResponse) -> MetricBlock:
        try:
            size = int.from_bytes(_exactly(answer, LENGTH_BYTES))
            return decode_frame(_exactly(answer, size))
        except (OSError, HTTPException) as exc:
            raise ClientError(f"{self._url} ended the answer before its end ({exc}): try again") from exc
        except WrongBlock as exc:
            raise ClientError(f"{exc}: {self._gateway.versions()}") from exc

    def _record(self, kind: type[R], fields: dict[str, Any]) -> R:
        with self._same_version():
            return record(kind, fields)

    @contextmanager
    def _same_version(self) -> Iterator[None]:
        """Convert errors from parsing a response into a `ClientError` that compares the versions of both sides."""
        try:
            yield
        except (msgspec.ValidationError, KeyError, TypeError) as exc:
            raise ClientError(f"{self._url} answers in another form ({exc}): {self._gateway.versions()}") from exc


def _rows_at_end(event: dict[str, Any]) -> list[int] | None:
    """Return the numbers of log, metric and checkpoint rows if the job has ended, else None.

    `event` has them only if it is the first event of a connection (`snapshot` or `resumed`).
    """
    if event["type"] not in ("snapshot", "resumed") or event["job"]["status"] not in FINISHED:
        return None
    return _rows(event["job"])


def _rows(job: dict[str, Any]) -> list[int]:
    """Return the numbers of rows in the document of a job, in the order of a position in the feed."""
    return [job["rows"][kind] for kind in ("logs", "metrics", "checkpoints")]


def _has_all(position: str, rows: Sequence[int]) -> bool:
    """Return whether a feed at `position` has sent all `rows`, the numbers of rows of each kind."""
    return all(int(seen) >= count for seen, count in zip(position.split("-"), rows, strict=True))


def _exactly(answer: HTTPResponse, size: int) -> bytes:
    data = answer.read(size)
    if len(data) < size:
        raise OSError(f"{len(data)} of {size} bytes came")
    return data


def _events(answer: HTTPResponse) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """Yield the position and the parsed JSON data of each server-sent event in the response."""
    position, data = None, ""
    for raw in answer:
        name, _, value = raw.decode().rstrip("\r\n").partition(":")
        value = value.removeprefix(" ")
        if name == "id":
            position = value
        elif name == "data":
            data += value
        elif not name and not value and data:
            yield position, json.loads(data)
            data = ""
