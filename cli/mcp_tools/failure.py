"""The tool that collects evidence about a failed job."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from pydantic import Field

from trainwire.cli.comparison import final_metrics
from trainwire.cli.mcp_tools.answers import Answer, JobReference, MaxChars, shown_line, shown_time
from trainwire.cli.mcp_tools.metric_tools import summary
from trainwire.client.client import Client
from trainwire.client.job import Job
from trainwire.client.records import JobInfo
from trainwire.schemas.events import LogLine
from trainwire.schemas.non_finite import shown_float
from trainwire.schemas.wire.messages import FINISHED

ERROR_LEVELS: Final = ("ERROR", "CRITICAL", "FATAL")
MOST_NOT_FINITE: Final = 10
"""Largest number of metrics whose histories are searched for the first value that is not finite."""
_SIGNAL_NOTES: Final = {
    "SIGKILL": "; often the kernel's out-of-memory killer, or a scheduler's limit",
    "SIGTERM": "; often a scheduler's limit or a shutdown",
    "SIGINT": "; ctrl-C",
}


def why_failed(
    client: Client,
    job: JobReference,
    lines: Annotated[int, Field(ge=1, le=500, description="Most lines of stderr, and of errors by level.")] = 20,
    max_chars: MaxChars = 4000,
) -> dict[str, Any]:
    """Collect evidence about a failed, lost or stalled job: findings, error, traceback, last lines, metrics.

    Findings are facts in the order of their weight, not a diagnosis.
    """
    found = client.job(job)
    info = found.info
    answer = Answer(found, max_chars=max_chars)
    completeness = found.completeness()
    not_finite = _not_finite(found)
    answer.add(findings=list(_findings(info, not_finite, completeness.state, datetime.now(UTC))))
    answer.add(exit_code=info.exit_code, error_message=info.error_message, status_reason=info.status_reason)
    answer.add(started_at=info.started_at, completed_at=info.completed_at, last_seen_at=info.last_seen_at)
    if info.traceback is not None:
        answer.add(traceback=_end(info.traceback, max_chars, answer))
    stderr = found.log_page(limit=lines, log_type="stderr", attempt=info.attempt).lines
    last = stderr or found.log_page(limit=lines, attempt=info.attempt).lines
    answer.add(**{"last_stderr_lines" if stderr else "last_lines": _shown(last, info)})
    answer.add(last_error_lines=_shown(_errors(found, lines), info))
    answer.add(metrics_at_end=final_metrics(info), metrics_not_finite=not_finite)
    answer.add(checkpoint_to_resume_from=info.last_checkpoint_path, completeness=completeness.line)
    if info.rows["logs"] > len(last):
        answer.leave_out(f"{info.rows['logs'] - len(last):,} other log lines: search_log or log_around")
    return answer.document()


def _findings(info: JobInfo, not_finite: list[dict[str, Any]], completeness: str, now: datetime) -> Iterator[str]:
    if info.status not in ("failed", "lost", "stalled"):
        yield f"the job has not failed: its status is {info.status}"
    if info.exit_code:
        yield f"exit code {info.exit_code}{_signal_note(info.exit_code)}"
    if info.error_message:
        yield f"reported error: {info.error_message}"
    if info.status in ("lost", "stalled") and info.last_seen_at is not None:
        silent_s = (now - info.last_seen_at).total_seconds()
        reason = f" ({info.status_reason})" if info.status_reason else ""
        yield (
            f"{info.status}: the newest heartbeat or message is of {shown_time(info.last_seen_at)}, "
            f"{silent_s:,.0f} s ago{reason}; no end was reported: the process was killed or hangs, or its machine "
            "or network failed"
        )
    for metric in not_finite:
        first = metric["first_not_finite"]
        where = ", ".join(f"{name} {first[name]}" for name in ("epoch", "step", "seq") if name in first)
        yield f"metric {metric['name']} became {shown_float(first['value'])} at {where}"
    if info.status in FINISHED and completeness in ("incomplete", "unproven"):
        yield f"the record is {completeness}: the last lines may be missing here"


def _signal_note(code: int) -> str:
    number = code - 128 if code > 128 else -code
    try:
        name = signal.Signals(number).name
    except ValueError:
        return ""
    return f": ended by signal {number} ({name}){_SIGNAL_NOTES.get(name, '')}"


def _not_finite(job: Job) -> list[dict[str, Any]]:
    """Return the metrics that ended with NaN or an infinity, each with its first point that is not finite.

    Only the first MOST_NOT_FINITE of them are searched.
    """
    ends = final_metrics(job.info)
    names = [name for name, value in ends.items() if isinstance(value, float) and not math.isfinite(value)]
    if not names:
        return []
    found = []
    for name, series in job.metrics(names[:MOST_NOT_FINITE]).items():
        newest = [at for at in range(len(series.seq)) if series.attempt[at] == job.info.attempt]
        summed = summary(series, newest)
        if summed["not_finite"]:
            kept = {key: summed[key] for key in ("points", "not_finite", "first_not_finite", "last")}
            found.append({"name": name, **kept})
    return found


def _errors(job: Job, most: int) -> list[LogLine]:
    """Return the newest `most` lines of the newest attempt that were logged at one of ERROR_LEVELS."""
    pages = [job.log_page(limit=most, level=level, attempt=job.info.attempt) for level in ERROR_LEVELS]
    lines = sorted((line for page in pages for line in page.lines), key=lambda line: line.seq)
    return lines[-most:]


def _shown(lines: Any, info: JobInfo) -> list[dict[str, Any]]:
    return [shown_line(line, info.attempt) for line in lines]


def _end(text: str, max_chars: int, answer: Answer) -> str:
    """Return the last `max_chars` characters of a traceback; the exception is named at its end."""
    if len(text) > max_chars:
        answer.leave_out(f"the first {len(text) - max_chars:,} characters of the traceback: max_chars={len(text)}")
    return text[-max_chars:]
