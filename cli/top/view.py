"""Formats a snapshot of the system as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trainwire.cli.terminal import cell, one_line, table
from trainwire.cli.top.snapshot import Snapshot
from trainwire.schemas import prometheus_metrics as names
from trainwire.schemas.keys import KINDS
from trainwire.stores.postgres.jobs.job_lookup import Job

LATE_S: Final = 60.0
BEAT_LATE_S: Final = 30.0
UNKNOWN: Final = "-"
BAD: Final = "bold red"


def render(now: Snapshot, before: Snapshot | None) -> RenderableType:
    """Format a snapshot as rich tables; rates are computed since the snapshot `before`, and are `-` without it."""
    parts: list[RenderableType] = [Text(one_line(line), style=BAD) for line in now.unreachable]
    parts += [_head(now), Text(), _streams(now, before)]
    if now.labels(names.SINK_LAG_ROWS):
        parts += [Text(), _sinks(now, before)]
    parts += [Text(), _workers(now), Text(), _jobs(now.jobs, datetime.now(UTC))]
    return Group(*parts)


def _head(now: Snapshot) -> Text:
    line = Text("trainwire", style="bold")
    for shown, is_bad in _facts(now):
        line.append("  ·  ", style="dim")
        line.append(shown, style=BAD if is_bad else "")
    return line


def _facts(now: Snapshot) -> Iterator[tuple[str, bool]]:
    used, limit = now.total(names.REDIS_USED_BYTES), now.total(names.REDIS_LIMIT_BYTES)
    if used is not None:
        share = f" ({used / limit:.0%})" if limit else ""
        yield f"redis {size(used)}{share}", bool(now.total(names.REDIS_HOLD))
    if now.total(names.REDIS_HOLD):
        yield "trainers hold back", True
    beat_s = now.total(names.BEAT_AGE_SECONDS)
    yield f"beat {age(beat_s)}", beat_s is None or beat_s > BEAT_LATE_S
    letters, missing = now.total(names.DEAD_LETTERS) or 0, now.total(names.MISSING_MESSAGES) or 0
    yield f"{letters:,.0f} dead letters", bool(letters)
    yield f"{missing:,.0f} messages missing", bool(missing)
    for status in now.labels(names.JOBS):
        yield f"{now.total(names.JOBS, status):,.0f} {status}", status in {"lost", "stalled"}


def _streams(now: Snapshot, before: Snapshot | None) -> Table:
    numbers = ("waiting", "oldest", "rows/s", "bytes/s", "resent/s")
    shown = table("stream", *numbers, "", right=frozenset(numbers))
    for kind in KINDS:
        oldest_s = now.most(names.STREAM_LAG_SECONDS, kind)
        halted = now.total(names.STREAM_HALTED, kind)
        shown.add_row(
            kind,
            number(now.total(names.STREAM_LAG_ENTRIES, kind)),
            Text(age(oldest_s), style=BAD if (oldest_s or 0) > LATE_S else ""),
            number(now.rate(before, names.INGEST_ROWS, kind)),
            size(now.rate(before, names.INGEST_BYTES, kind)),
            number(now.rate(before, names.INGEST_DUPLICATES, kind)),
            Text("halted" if halted else "", style=BAD),
        )
    return shown


def _sinks(now: Snapshot, before: Snapshot | None) -> Table:
    numbers = ("rows behind", "oldest", "rows/s")
    shown = table("sink", *numbers, "", right=frozenset(numbers))
    for sink in now.labels(names.SINK_LAG_ROWS):
        down_s = now.total(names.SINK_DOWN_SECONDS, sink)
        shown.add_row(
            sink,
            number(now.total(names.SINK_LAG_ROWS, sink)),
            age(now.most(names.SINK_LAG_SECONDS, sink)),
            number(now.rate(before, names.SINK_CONFIRMED_ROWS, sink)),
            Text(f"does not answer for {age(down_s)}" if down_s else "", style=BAD),
        )
    return shown


def _workers(now: Snapshot) -> Table:
    shown = table("worker", "queues (waiting orders)")
    if not now.workers:
        shown.add_row(Text("no worker answers", style=BAD), "")
    for worker, queues in now.workers.items():
        ours = [queue for queue in queues if not queue.startswith("echo.")]
        waiting = [f"{queue} ({now.total(names.QUEUE_ORDERS, queue) or 0:,.0f})" for queue in ours]
        shown.add_row(cell(worker), cell(" · ".join(waiting)))
    return shown


def _jobs(jobs: tuple[Job, ...], at: datetime) -> Table:
    numbers = ("job", "epoch", "done", "logs", "metrics", "quiet")
    shown = table("job", "name", "status", *numbers[1:], right=frozenset(numbers))
    for job in jobs:
        quiet_s = None if job.last_seen_at is None else max(0.0, (at - job.last_seen_at).total_seconds())
        epoch = None if job.current_epoch is None else f"{job.current_epoch}/{job.total_epochs or '?'}"
        done = None if job.progress_percent is None else f"{job.progress_percent:.0f}%"
        rows = (f"{job.last_log_seq:,}", f"{job.last_metric_seq:,}")
        status = Text(job.status, style="" if job.status == "running" else BAD)
        shown.add_row(cell(job.id), cell(job.name), status, cell(epoch), cell(done), *rows, age(quiet_s))
    return shown


def number(value: float | None) -> str:
    """Format a count or a rate with thousands separators; `-` for None."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def size(value: float | None) -> str:
    """Format a size in bytes with a binary unit; `-` for None."""
    if value is None:
        return UNKNOWN
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:,.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"


def age(seconds: float | None) -> str:
    """Format seconds in the largest unit of which there are at least two; `-` for None."""
    if seconds is None:
        return UNKNOWN
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:.0f} s"
