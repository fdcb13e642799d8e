"""Rows on their way to clients: each is JSON from the first touch on, encoded once for everybody."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, cast

import msgspec
from msgspec.structs import replace

from trainwire.gateway.feed.job_state import Standing, checkpoint_paths, progress
from trainwire.schemas.events import (
    Event,
    LogLine,
    MetricPoint,
    SavedCheckpoint,
    TrainingCheckpoint,
    TrainingLog,
    TrainingProgress,
)
from trainwire.schemas.kinds import ROW_KINDS, RowEvent, RowKind
from trainwire.schemas.non_finite import Number

MAX_ROWS: Final = 1000
"""Most rows in one event."""

_US_NS: Final = 1000
_encode = msgspec.json.Encoder().encode
_decode_point = msgspec.json.Decoder(MetricPoint).decode


class Row(NamedTuple):
    """One row, as the JSON of its struct in schemas/events.py."""

    seq: int
    json: msgspec.Raw

    @property
    def size_bytes(self) -> int:
        """The length of the JSON."""
        return memoryview(self.json).nbytes


class Hole(NamedTuple):
    """Rows of one kind that exist and are not here: those after `have`, through `last`."""

    kind: RowKind
    have: int
    last: int


class Rows(NamedTuple):
    """All rows of one kind after `have` through `last`; only what was deleted is missing among `items`."""

    kind: RowKind
    have: int
    last: int
    items: Sequence[Row]

    def after(self, seq: int) -> list[Row]:
        """Return the rows after `seq`."""
        return [row for row in self.items if row.seq > seq]

    def upto(self, last: int) -> Rows:
        """Return these rows without those after `last`."""
        if self.last <= last:
            return self
        return self._replace(last=last, items=[row for row in self.items if row.seq <= last])


def encoded(item: LogLine | MetricPoint | SavedCheckpoint) -> Row:
    """Return a row as JSON."""
    return Row(item.seq, msgspec.Raw(_encode(item)))


def carried(event: RowEvent) -> list[Row] | None:
    """Return the rows that an event carries, as Postgres would give them back; None where it carries none."""
    match event:
        case TrainingLog():
            items: Iterable[Any] | None = event.lines
        case TrainingProgress():
            items = event.points and map(_as_stored, event.points)
        case TrainingCheckpoint():
            items = event.checkpoints and (replace(item, ts=_micros(item.ts)) for item in event.checkpoints)
    return None if items is None else [encoded(item) for item in items]


def with_rows(event: RowEvent, have: int, last: int, rows: Sequence[Row]) -> RowEvent:
    """Return the event with these rows as those after `have` through `last`."""
    items = [row.json for row in rows]
    return replace(
        event, first_seq=have + 1, last_seq=last, **{ROW_KINDS[cast("RowKind", event.kind)].items: items}
    )


def event_of(job_id: int, standing: Standing, kind: RowKind, rows: Sequence[Row]) -> RowEvent:
    """Return the event for rows that come from Postgres; the job in it stands as it was last told."""
    match kind:
        case "logs":
            return TrainingLog(job_id=job_id, attempt=standing.attempt, kind="logs")
        case "metrics":
            return replace(progress(job_id, standing), metrics=_newest_values(standing.attempt, rows))
        case "checkpoints":
            return checkpoint_paths(job_id, standing)


def has_state(event: Event) -> bool:
    """Tell whether an event says how the job stands, not only which rows are new."""
    return not isinstance(event, TrainingLog)


def _newest_values(attempt: int, rows: Sequence[Row]) -> dict[str, Number] | None:
    """Return the values of the last point that belongs to this attempt, not to an earlier one that is late."""
    for row in reversed(rows):
        point = _decode_point(row.json)
        if point.attempt == attempt:
            return point.values
    return None


def _as_stored(point: MetricPoint) -> MetricPoint:
    """Return a point with the microseconds that its row has, so that both ways give the same."""
    return replace(point, ts=_micros(point.ts))


def _micros(ts_ns: int) -> int:
    return ts_ns - ts_ns % _US_NS
