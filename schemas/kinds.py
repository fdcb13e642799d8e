"""The kinds of messages that become rows: their table, their columns, their number column and their event.

A new kind of rows is an entry here, its body in `trainwire.schemas.messages`, its columns in
`trainwire.schemas.tables`, its event in `trainwire.schemas.events`, and the functions that make its rows
(`trainwire.workers.drain.rows`) and its items (`trainwire.workers.events.new_rows`,
`trainwire.gateway.feed.feed_queries`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from msgspec.structs import replace
from sqlalchemy import Table

from trainwire.schemas.events import Event, TrainingCheckpoint, TrainingLog, TrainingProgress
from trainwire.schemas.tables import LIFTED, training_checkpoints, training_logs, training_metrics

RowKind: TypeAlias = Literal["logs", "metrics", "checkpoints"]
RowEvent: TypeAlias = TrainingLog | TrainingProgress | TrainingCheckpoint


@dataclass(frozen=True, slots=True)
class RowStorage:
    """Where the rows of one kind are stored, and how they are announced."""

    table: Table
    columns: tuple[str, ...]
    """Columns that a drain writes, in the order of the tuples of `trainwire.workers.drain.rows`."""
    last_seq: str
    """Column of training_jobs with the last `seq` given to a row, which is the number of rows ever written."""
    removed_seq: str | None
    """Column of training_jobs with the last `seq` that retention has removed; None: rows are never removed."""
    event: type[RowEvent]
    items: str
    """Field of the event that carries the rows."""


ROW_KINDS: Final[dict[RowKind, RowStorage]] = {
    "logs": RowStorage(
        training_logs,
        (
            *("job_id", "seq", "attempt", "rank", "source"),
            *("log_type", "logged_at", "logged_ns", "level", "content"),
        ),
        last_seq="last_log_seq",
        removed_seq="removed_log_seq",
        event=TrainingLog,
        items="lines",
    ),
    "metrics": RowStorage(
        training_metrics,
        (
            *("job_id", "seq", "attempt", "rank", "source"),
            *("logged_at", "epoch", "step", *LIFTED, "checkpoint_path", "extra_metrics"),
        ),
        last_seq="last_metric_seq",
        removed_seq="removed_metric_seq",
        event=TrainingProgress,
        items="points",
    ),
    "checkpoints": RowStorage(
        training_checkpoints,
        (
            *("job_id", "seq", "attempt", "source", "logged_at", "kind", "uri", "epoch", "step", "size_bytes"),
            *("sha256", "store_checksum", "upload_error", "is_best", "metrics"),
        ),
        last_seq="last_checkpoint_seq",
        removed_seq=None,
        event=TrainingCheckpoint,
        items="checkpoints",
    ),
}


def without_rows(event: Event) -> Event:
    """Return an event without the rows that it carries; their range stays."""
    fields = [storage.items for storage in ROW_KINDS.values() if isinstance(event, storage.event)]
    return replace(event, **dict.fromkeys(fields))
