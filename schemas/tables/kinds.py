"""The kinds of messages that are stored as rows, with the table, columns, sequence column and event of each kind.

To add a kind, add an entry here, its body in `trainwire.schemas.wire.messages`, its columns in
`trainwire.schemas.tables`, its event in `trainwire.schemas.events`, and the functions that make its rows
(`trainwire.workers.drain.rows`) and the rows in its events (`trainwire.workers.events.new_rows`,
`trainwire.gateway.feed.feed_queries`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from msgspec.structs import replace
from sqlalchemy import Table

from trainwire.schemas.events import Event, TrainingCheckpoint, TrainingLog, TrainingProgress
from trainwire.schemas.sinks import ROWS
from trainwire.schemas.tables import LIFTED, metadata, training_checkpoints

RowKind: TypeAlias = Literal["logs", "metrics", "checkpoints"]
RowEvent: TypeAlias = TrainingLog | TrainingProgress | TrainingCheckpoint


@dataclass(frozen=True, slots=True)
class RowStorage:
    """The table, columns and event of one kind of row."""

    table: Table
    columns: tuple[str, ...]
    """The columns that a drain writes, in the order of the tuples in `trainwire.workers.drain.rows`."""
    last_seq: str
    """Column of training_jobs with the last `seq` given to a row (`trainwire.schemas.sinks.RowNames`)."""
    removed_seq: str | None
    """Column of training_jobs with the last `seq` that retention has removed; None if retention does not apply."""
    event: type[RowEvent]
    items: str
    """The name of the event's field that contains the rows."""


ROW_KINDS: Final[dict[RowKind, RowStorage]] = {
    "logs": RowStorage(
        metadata.tables[ROWS["logs"].table],
        (
            *("job_id", "seq", "attempt", "rank", "source"),
            *("log_type", "logged_at", "logged_ns", "level", "content"),
        ),
        last_seq=ROWS["logs"].last_seq,
        removed_seq=ROWS["logs"].removed_seq,
        event=TrainingLog,
        items="lines",
    ),
    "metrics": RowStorage(
        metadata.tables[ROWS["metrics"].table],
        (
            *("job_id", "seq", "attempt", "rank", "source"),
            *("logged_at", "epoch", "step", *LIFTED, "checkpoint_path", "extra_metrics"),
        ),
        last_seq=ROWS["metrics"].last_seq,
        removed_seq=ROWS["metrics"].removed_seq,
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


_ITEMS: Final = {storage.event: storage.items for storage in ROW_KINDS.values()}


def without_rows(event: Event) -> Event:
    """Return a copy of `event` without its rows, or `event` if it has none; `first_seq` and `last_seq` remain."""
    items = _ITEMS.get(type(event))  # type: ignore[arg-type]
    return event if items is None or getattr(event, items) is None else replace(event, **{items: None})
