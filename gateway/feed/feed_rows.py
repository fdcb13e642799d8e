"""Rows of one job, and the positions of clients in them; each row is encoded as JSON once for all clients."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any, Final, NamedTuple, cast

import msgspec
from msgspec.structs import replace

from trainwire.gateway.feed.feed_state import FeedState, checkpoint_event, progress_event
from trainwire.schemas.events import (
    LogLine,
    MetricPoint,
    SavedCheckpoint,
    TrainingLog,
)
from trainwire.schemas.non_finite import Number
from trainwire.schemas.tables.kinds import ROW_KINDS, RowEvent, RowKind

MAX_ROWS: Final = 1000
"""Maximum number of rows in one event."""
CACHED_ROWS: Final = 4000
CACHED_BYTES: Final = 1024 * 1024

_POSITION: Final = re.compile(r"(\d{1,19})-(\d{1,19})-(\d{1,19})", re.ASCII)
_MAX_SEQ: Final = 2**63 - 1
_US_NS: Final = 1000
_encode = msgspec.json.Encoder().encode
_decode_point = msgspec.json.Decoder(MetricPoint).decode


class InvalidPosition(ValueError):  # noqa: N818 - its text is sent to clients
    """A client sent a position that is malformed or after the job's last row."""


class FeedPosition(NamedTuple):
    """The position of a client in a job's feed: the last `seq` that it has of each kind of row.

    As text, for example `120-45-3`, a client sends it to resume.
    """

    logs: int
    metrics: int
    checkpoints: int

    def __str__(self) -> str:
        return f"{self.logs}-{self.metrics}-{self.checkpoints}"

    def of(self, kind: RowKind) -> int:
        """Return the last `seq` that the client has of the rows of `kind`."""
        return cast("int", getattr(self, kind))

    def with_seq(self, kind: RowKind, seq: int) -> FeedPosition:
        """Return a copy whose last `seq` of `kind` is `seq`."""
        return self._replace(**{kind: seq})

    def is_beyond(self, other: FeedPosition) -> bool:
        """Return whether this position has a greater `seq` than the position `other` in any kind."""
        return any(mine > theirs for mine, theirs in zip(self, other, strict=True))


def parse_position(text: str) -> FeedPosition:
    """Parse a position that a client sends back; raise `InvalidPosition` if it is malformed."""
    parts = _POSITION.fullmatch(text)
    numbers = [int(part) for part in parts.groups()] if parts else [-1]
    if not all(0 <= number <= _MAX_SEQ for number in numbers):
        raise InvalidPosition(
            f"{text[:80]!r} is not a position like 120-45-3: send the position of the last frame, or none"
        )
    return FeedPosition(*numbers)


class Row(NamedTuple):
    """One row: its `seq`, and its JSON as in events (schemas/events.py)."""

    seq: int
    json: msgspec.Raw

    @property
    def size_bytes(self) -> int:
        """Length of the JSON in bytes."""
        return memoryview(self.json).nbytes


class RowGap(NamedTuple):
    """A range of rows of one kind that must be read from Postgres: `after` < `seq` <= `last`."""

    kind: RowKind
    after: int
    last: int


class RowBatch(NamedTuple):
    """All rows of one kind with `after` < `seq` <= `last`; deleted rows are absent from `items`."""

    kind: RowKind
    after: int
    last: int
    items: Sequence[Row]

    def rows_after(self, seq: int) -> list[Row]:
        """Return the rows whose `seq` is greater than the given one."""
        return [row for row in self.items if row.seq > seq]

    def up_to(self, last: int) -> RowBatch:
        """Return this batch without the rows after `last`."""
        if self.last <= last:
            return self
        return self._replace(last=last, items=[row for row in self.items if row.seq <= last])


class RowCache:
    """The newest rows of one kind, without a gap.

    The oldest rows are evicted if there are more than `CACHED_ROWS`, or more than `CACHED_BYTES` in total.
    """

    def __init__(self, kind: RowKind, after: int) -> None:
        self._kind = kind
        self._after = after
        self._rows: list[Row] = []
        self._size_bytes = 0

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows that directly follow the newest cached row."""
        self._rows += rows
        self._size_bytes += sum(row.size_bytes for row in rows)
        # Half of the rows are dropped at once, because each deletion from the front moves all others.
        while self._size_bytes > CACHED_BYTES or len(self._rows) > CACHED_ROWS:
            half = (len(self._rows) + 1) // 2
            self._after = self._rows[half - 1].seq
            self._size_bytes -= sum(row.size_bytes for row in self._rows[:half])
            del self._rows[:half]

    def find(self, after: int, last: int) -> RowBatch | None:
        """Return at most `MAX_ROWS` rows with `after` < `seq` <= `last`; None if the first ones were evicted."""
        if after < self._after:
            return None
        begin = bisect_right(self._rows, after, key=attrgetter("seq"))
        end = min(bisect_right(self._rows, last, key=attrgetter("seq")), begin + MAX_ROWS)
        is_all = end - begin < MAX_ROWS
        return RowBatch(self._kind, after, last if is_all else self._rows[end - 1].seq, self._rows[begin:end])


def encode_row(item: LogLine | MetricPoint | SavedCheckpoint) -> Row:
    """Encode a row as JSON."""
    return Row(item.seq, msgspec.Raw(_encode(item)))


def rows_of(event: RowEvent) -> list[Row] | None:
    """Return the rows that an event carries; None if it carries none.

    Postgres stores the times of points and checkpoints in microseconds, so they are truncated here too: each row
    is equal to the same row read from Postgres.
    """
    items = getattr(event, ROW_KINDS[cast("RowKind", event.kind)].items)
    if items is not None and not isinstance(event, TrainingLog):
        items = (replace(item, ts=item.ts - item.ts % _US_NS) for item in items)
    return None if items is None else [encode_row(item) for item in items]


def with_rows(event: RowEvent, after: int, last: int, rows: Iterable[Row]) -> RowEvent:
    """Return a copy of the event with `rows`, which are all rows with `after` < `seq` <= `last`."""
    items: dict[str, Any] = {ROW_KINDS[cast("RowKind", event.kind)].items: [row.json for row in rows]}
    return replace(event, first_seq=after + 1, last_seq=last, **items)


def event_for_rows(job_id: int, state: FeedState, kind: RowKind, rows: Sequence[Row]) -> RowEvent:
    """Create an event of the type that reports rows of `kind`, with the job's state but without the rows.

    The caller adds rows that were read from Postgres. A metrics event has the newest values in `rows`.
    """
    match kind:
        case "logs":
            return TrainingLog(job_id=job_id, attempt=state.attempt, kind="logs")
        case "metrics":
            return replace(progress_event(job_id, state), metrics=_newest_values(state.attempt, rows))
        case "checkpoints":
            return checkpoint_event(job_id, state)


def _newest_values(attempt: int, rows: Sequence[Row]) -> dict[str, Number] | None:
    """Return the values of the newest point of `attempt`; late points of earlier attempts are skipped."""
    points = (_decode_point(row.json) for row in reversed(rows))
    return next((point.values for point in points if point.attempt == attempt), None)
