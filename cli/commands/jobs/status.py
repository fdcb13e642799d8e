"""`trainwire status`: shows one job, read from Postgres or through a gateway."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection

from trainwire.cli.commands.jobs.jobs import job_document, progress_of, shown_status
from trainwire.cli.commands.options import AsJson, DataDir, JobReference, plain, servers, write_json
from trainwire.cli.formats import shown_clock, shown_time, shown_values
from trainwire.cli.gateway_jobs import GatewayJobs, gateway_jobs
from trainwire.cli.gateway_reads import GatewayReads
from trainwire.cli.job_references import named_job
from trainwire.cli.terminal import one_line, say, warn
from trainwire.schemas.non_finite import Number
from trainwire.stack.database import reading
from trainwire.stack.locate import streams_url
from trainwire.stores.postgres.checkpoints import CheckpointFile, find_problems, last_checkpoint
from trainwire.stores.postgres.completeness import find_completeness
from trainwire.stores.postgres.deliveries import JobDelivery, SinkHealth, counted, job_deliveries, shown_delivery
from trainwire.stores.postgres.jobs.attempts import find_attempts, find_provenance, renaming
from trainwire.stores.postgres.jobs.job_lookup import Job
from trainwire.stores.rows.sparklines import LAST_ROWS, last_values

EXIT_UNKNOWN: Final = "the exit code of its process is not known (docs/ends.md)"
ROW_NAMES: Final = {"logs": "log line", "metrics": "metric point", "checkpoints": "checkpoint"}
_COMMIT_CHARS: Final = 12


class StatusReport(NamedTuple):
    """One job with the rows and messages that belong to it.

    `halted` maps each stream whose drain has stopped to the reason; it is None if this is not known.
    """

    job: Job
    last_metrics: dict[str, Number]
    checkpoint: str | None
    completeness: dict[str, Any]
    deliveries: dict[str, tuple[JobDelivery, SinkHealth]]
    problems: list[CheckpointFile]
    warning: str | None
    provenance: dict[str, Any]
    halted: dict[str, str] | None


def status(job: JobReference, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Show one job: status, progress, last metrics, row counts, and whether all its messages have arrived."""
    report = _report(job, data_dir)
    if report.halted is None:
        warn("whether a drain has stopped is not known over HTTP: run `trainwire doctor` beside the workers")
    if as_json:
        write_json(_status_document(report))
        return
    sinks = [(sink, shown_delivery(*delivery, shown_clock)) for sink, delivery in report.deliveries.items()]
    for name, value in _status_lines(report) + _provenance_lines(report.provenance) + sinks:
        say(f"{name:<16}{one_line(value)}")
    _say_completeness(report)
    if report.warning:
        warn(one_line(report.warning))
    if report.problems:
        warn(one_line(_shown_problems(report.job.id, report.problems)))
    for stream, reason in (report.halted or {}).items():
        warn(f"the drain of {one_line(stream)} has stopped: {one_line(reason)}")


def _report(job: str, data_dir: Path | None) -> StatusReport:
    with gateway_jobs(data_dir) as remote:
        if remote is not None:
            return _gateway_report(remote, job)
    from trainwire.cli.redis_clients import halted_streams  # noqa: PLC0415 - `trainwire jobs` does not need Redis

    address = servers(data_dir)
    halted = halted_streams(address.redis_url and streams_url(address.redis_url, os.environ))
    with reading(address) as connection:
        return _stored_report(connection, named_job(connection, job), halted)


def _say_completeness(report: StatusReport) -> None:
    completeness = report.completeness
    say(one_line(completeness["line"]))
    if 0 < completeness["stored"] < sum(report.job.rows.values()):
        say(f"{'':<16}a message is a batch of rows: log lines, or points of metrics, that were sent together")
    if completeness["absent_ranks"]:
        say(f"{'':<16}if only some ranks use trainwire, set TRAINWIRE_WORLD_SIZE to their number")
    if completeness["shared_ranks"]:
        warn(
            f"several trainers were job {report.job.id} with the same rank at the same time: nothing is lost, but "
            "their messages are mixed in one attempt. Give each a job id, or a rank (TRAINWIRE_RANK), of its own"
        )


def _shown_problems(job_id: int, problems: list[CheckpointFile]) -> str:
    counts = Counter(file.state for file in problems)
    shown = ", ".join(f"{count:,} {state}" for state, count in counts.items())
    newest = problems[-1]
    return f"checkpoints: {shown}; the newest: {newest.reason}; see `trainwire checkpoints {job_id}`"


def _stored_report(connection: Connection, job: Job, halted: dict[str, str]) -> StatusReport:
    """Read the report of a job from Postgres."""
    return StatusReport(
        job=job,
        last_metrics=last_values(connection, [job.id], LAST_ROWS).get(job.id, {}),
        checkpoint=job.last_checkpoint_path or last_checkpoint(connection, job.id),
        completeness=find_completeness(connection, job).document,
        deliveries=job_deliveries(connection, job.id),
        problems=find_problems(connection, job.id),
        warning=renaming(find_attempts(connection, job.id)),
        provenance=find_provenance(connection, job.id, job.attempt),
        halted=halted,
    )


def _gateway_report(remote: GatewayJobs, reference: str) -> StatusReport:
    """Read the report of the job that `reference` names through a gateway."""
    reads, job_id = GatewayReads(remote), remote.job(reference).id
    found = reads.report(job_id)
    return StatusReport(
        job=found.job,
        last_metrics=found.last_metrics,
        checkpoint=found.last_checkpoint,
        completeness=reads.completeness(job_id),
        deliveries=reads.deliveries(job_id),
        problems=reads.checkpoints(job_id, only_problems=True),
        warning=found.warning,
        provenance=reads.provenance(job_id),
        halted=None,
    )


def _status_document(report: StatusReport) -> dict[str, Any]:
    return job_document(report.job) | {
        "last_metrics": report.last_metrics,
        "last_checkpoint": report.checkpoint,
        "completeness": report.completeness,
        # `attempts` and `last_error` are fields of both, the job's and the sink's.
        "deliveries": {
            sink: {**plain(job), "sink": plain(health)} for sink, (job, health) in report.deliveries.items()
        },
        "halted": report.halted,
        "checkpoint_problems": report.problems,
        "provenance": report.provenance,
    }


def _status_lines(report: StatusReport) -> list[tuple[str, str]]:
    job = report.job
    named = f" {job.name}" if job.name else ""
    lines: list[tuple[str, object]] = [
        ("job", f"{job.id}{named}"),
        ("status", f"{shown_status(job)}, attempt {job.attempt}"),
        ("note", job.note),
        ("archived", shown_time(job.archived_at)),
        ("why", EXIT_UNKNOWN if job.status == "ended" else job.status_reason),
        ("stop", _stop(job)),
        ("resumed", None if job.resume_step is None else f"from step {job.resume_step:,}"),
        ("forked", None if job.parent_id is None else f"from job {job.parent_id} at step {job.fork_step or 0:,}"),
        ("started", shown_time(job.started_at)),
        ("ended", shown_time(job.completed_at)),
        ("last seen", None if job.completed_at else shown_time(job.last_seen_at)),
        ("progress", progress_of(job)),
        ("last metrics", shown_values(report.last_metrics)),
        ("best metrics", _best(job)),
        ("exit code", job.exit_code),
        ("error", job.error_message),
        ("best checkpoint", job.best_checkpoint_path),
        ("last checkpoint", report.checkpoint),
        ("rows", shown_rows(job)),
    ]
    return [(name, str(value)) for name, value in lines if value not in (None, "")]


def _stop(job: Job) -> str | None:
    """Format the user's request to stop the job: its author, time and reason; None if there is none."""
    if job.stop is None:
        return None
    at = shown_time(datetime.fromisoformat(job.stop["requested_at"]))
    why = f": {job.stop['reason']}" if job.stop["reason"] else ""
    return f"asked by {job.stop['requested_by']} {at}{why}"


def shown_rows(job: Job) -> str:
    """Format the numbers of log, metric and checkpoint rows of the job."""
    return " · ".join(counted(count, ROW_NAMES[kind]) for kind, count in job.rows.items())


def _best(job: Job) -> str:
    epoch = "" if job.best_epoch is None else f" (epoch {job.best_epoch})"
    return f"{shown_values(job.best_metrics)}{epoch}" if job.best_metrics else ""


def _provenance_lines(items: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the provenance of an attempt as pairs (name, text) to print; malformed items are left out."""
    lines = []
    for name, item, shown in _LINES:
        try:
            text = shown(items[item]) if items.get(item) else ""
        except (TypeError, ValueError, AttributeError, KeyError, IndexError):
            continue
        if text:
            lines.append((name, text))
    return lines


def _git(git: Mapping[str, Any]) -> str:
    changes = f", {git['changed_files']} changed files" if git.get("changed_files") else ""
    branch = f" on {git['branch']}" if git.get("branch") else ""
    return f"{str(git['commit'])[:_COMMIT_CHARS]}{branch}{changes}" if git.get("commit") else "no commit yet"


def _gpus(gpus: list[Mapping[str, Any]]) -> str:
    count = "" if len(gpus) == 1 else f"{len(gpus)} x "
    return f"{count}{gpus[0]['name']}, driver {gpus[0]['driver']}"


_LINES: Final[tuple[tuple[str, str, Callable[[Any], str]], ...]] = (
    ("command", "command", lambda command: shlex.join(map(str, command))),
    ("folder", "folder", str),
    ("git", "git", _git),
    ("host", "host", lambda host: str(host["name"])),
    ("python", "python", lambda python: f"{python['version']}, {python['executable']}"),
    ("gpu", "gpu", _gpus),
    ("container", "container", lambda container: str(container.get("image") or container.get("id", ""))),
)
