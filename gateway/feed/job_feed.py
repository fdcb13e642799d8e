"""The live feed of one job, without network, clock or database: queues events and finds the rows to read.

Events from Redis may be lost, repeated or reordered. Still each row leaves the feed once and in order: rows that
directly follow the last one leave at once, others wait until the rows before them have been read from Postgres.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias, TypeGuard, cast

from msgspec.structs import replace

from trainwire.gateway.feed.feed_rows import (
    MAX_ROWS,
    FeedPosition,
    Row,
    RowBatch,
    RowCache,
    RowGap,
    event_for_rows,
    rows_of,
    with_rows,
)
from trainwire.gateway.feed.feed_state import FeedState, change_events, with_metrics_of
from trainwire.schemas.events import Event, TrainingCheckpoint, TrainingLog, TrainingProgress
from trainwire.schemas.tables.kinds import ROW_KINDS, RowEvent, RowKind

MAX_QUEUED: Final = 1000
"""Number of queued items at which the queue is cleared, because Postgres has been unavailable for long.

The rows of the discarded events are found by the next `update`.
"""
MAX_ROW_BYTES: Final = 256 * 1024
"""An event that has this many bytes of rows takes no more rows; a new event begins."""


class JobRow(NamedTuple):
    """A row of training_jobs, and the number of events with job state that were received before it was read."""

    position: FeedPosition
    state: FeedState
    state_events: int


class FeedEvent(NamedTuple):
    """An event for clients, and the position of a client that has received it."""

    event: Event
    position: FeedPosition


_Queued: TypeAlias = Event | RowGap | JobRow


class JobFeed:
    """Merges events from Redis and rows from Postgres into the ordered events for the clients of one job."""

    def __init__(self, job_id: int, row: JobRow) -> None:
        self.job_id = job_id
        self.position = row.position
        """Position of the clients that have received all events that `take` has returned."""
        self.state_events = row.state_events
        """Number of received events that report the job's state."""
        self._end = row.position
        self._state = row.state
        self._queue: deque[_Queued] = deque()
        self._pending = PendingEvents()
        self._recent = {kind: RowCache(kind, row.position.of(kind)) for kind in ROW_KINDS}

    def receive(self, event: Event) -> None:
        """Queue an event from Redis; a queue with MAX_QUEUED items is cleared first."""
        self.state_events += not isinstance(event, TrainingLog)
        if len(self._queue) >= MAX_QUEUED:
            self._queue.clear()
        self._queue.append(event)

    def update(self, row: JobRow) -> None:
        """Queue a row of training_jobs: it has the job's newest state, and reveals rows whose events were lost."""
        self._queue += [RowGap(kind, 0, row.position.of(kind)) for kind in ROW_KINDS]
        self._queue.append(row)

    def advance(self) -> RowGap | None:
        """Process the queue until it is empty; then return None.

        If rows must be read from Postgres before processing can continue, return their range instead; see `fill`.
        """
        while self._queue:
            gap = self._process(self._queue[0])
            if gap is None:
                self._queue.popleft()
            elif not self._process_overtaken(gap):
                return gap
        return None

    def fill(self, batch: RowBatch) -> None:
        """Add the rows that the caller has read from Postgres for the range that `advance` returned.

        If the batch has nothing new, the rows do not exist, and the queued item that waits for them is dropped.
        """
        end = self._end.of(batch.kind)
        if batch.last <= end:
            if self._queue:
                self._queue.popleft()
        elif batch.after <= end:
            rows = batch.rows_after(end)
            event = event_for_rows(self.job_id, self._state, batch.kind, rows)
            self._add_rows(event, batch._replace(after=end, items=rows))

    def take(self) -> list[FeedEvent]:
        """Remove and return the events that were added since the last call, in order.

        They are meant for clients that have received all earlier events.
        """
        events = self._pending.take(self.position)
        self.position = self._end
        return events

    def next_missed(self, position: FeedPosition) -> FeedEvent | RowGap | None:
        """Return the next event for a client at `position`; None if the client has received all events.

        If the rows of the event are not cached, return the range of rows that must be read from Postgres instead.
        """
        for kind in ROW_KINDS:
            after, last = position.of(kind), self.position.of(kind)
            if after < last:
                batch = self._recent[kind].find(after, last)
                return RowGap(kind, after, last) if batch is None else self.missed_rows(batch, position)
        return None

    def missed_rows(self, batch: RowBatch, position: FeedPosition) -> FeedEvent:
        """Return an event for a client at `position`, with those rows of `batch` that the client does not have."""
        after = position.of(batch.kind)
        last = min(batch.last, self.position.of(batch.kind))
        rows = [row for row in batch.rows_after(after) if row.seq <= last]
        event = event_for_rows(self.job_id, self._state, batch.kind, rows)
        return FeedEvent(with_rows(event, after, last, rows), position.with_seq(batch.kind, last))

    def _process(self, item: _Queued) -> RowGap | None:
        """Process one item of the queue.

        If rows must be read from Postgres before that is possible, return their range, otherwise None.
        """
        match item:
            case RowGap():
                end = self._end.of(item.kind)
                return item._replace(after=end) if item.last > end else None
            case JobRow():
                # A row that was read before the newest event has an older state than the clients.
                if item.state_events == self.state_events:
                    for event in change_events(self.job_id, self._state, item.state):
                        self._add_state(event)
                    self._state = item.state
                return None
        if _announces_rows(item):
            return self._process_rows(item)
        if not self._state.is_newer_than(item):
            self._add_state(item)
        return None

    def _process_rows(self, event: RowEvent) -> RowGap | None:
        kind, first, last = _range_of(event)
        end = self._end.of(kind)
        if last <= end:
            return None
        if first > end + 1:
            return RowGap(kind, end, first - 1)
        rows = rows_of(event)
        if rows is None:
            # The event follows without its range, for its state, once its rows have been read.
            gap = RowGap(kind, end, last)
            self._queue[0] = replace(event, first_seq=None, last_seq=None)
            self._queue.appendleft(gap)
            return gap
        self._add_rows(event, RowBatch(kind, end, last, [row for row in rows if row.seq > end]))
        return None

    def _process_overtaken(self, gap: RowGap) -> bool:
        """Process a later item of the queue if it contains the first rows of `gap`; return whether there is one.

        The rows then need not be read from Postgres.
        """
        for index, item in enumerate(self._queue):
            if not _announces_rows(item):
                continue
            kind, first, last = _range_of(item)
            if kind == gap.kind and first <= gap.after + 1 <= last and _carries_rows(item):
                del self._queue[index]
                self._process_rows(item)
                return True
        return False

    def _add_state(self, event: Event) -> None:
        if isinstance(event, TrainingLog):
            return  # without its range it reports nothing
        self._state = self._state.updated_by(event)
        self._pending.add(event)

    def _add_rows(self, event: RowEvent, batch: RowBatch) -> None:
        if self._state.is_newer_than(event):
            event = event_for_rows(self.job_id, self._state, batch.kind, batch.items)
        self._state = self._state.updated_by(event)
        self._pending.add_rows(event, batch)
        self._recent[batch.kind].add(batch.items)
        self._end = self._end.with_seq(batch.kind, batch.last)


@dataclass
class _Pending:
    """An event that waits to be sent to clients, merged from one or more events.

    Its rows, if it has any, are those with `after` < `seq` <= `last`.
    """

    event: Event
    after: int = 0
    last: int = 0
    rows: list[Row] = field(default_factory=list)
    size_bytes: int = 0

    @property
    def has_rows(self) -> bool:
        return self.last > self.after

    def accepts_rows_of(self, event: RowEvent) -> bool:
        return (
            type(event) is type(self.event)
            and self.has_rows
            and len(self.rows) < MAX_ROWS
            and self.size_bytes < MAX_ROW_BYTES
        )


class PendingEvents:
    """New events in order; successive events of one type are merged, so many small commits become one event.

    Log events do not report the job's state, so two of them may be merged although other events lie between them.
    """

    def __init__(self) -> None:
        self._events: list[_Pending] = []

    def add(self, event: Event) -> None:
        """Append an event without rows."""
        self._events.append(_Pending(event))

    def add_rows(self, event: RowEvent, batch: RowBatch) -> None:
        """Append an event with rows that directly follow those added before."""
        size_bytes = sum(row.size_bytes for row in batch.items)
        pending = self._mergeable(event)
        if pending is None or len(pending.rows) + len(batch.items) > MAX_ROWS:
            self._events.append(_Pending(event, batch.after, batch.last, list(batch.items), size_bytes))
            return
        pending.event = with_metrics_of(pending.event, event)
        pending.last = batch.last
        pending.rows += batch.items
        pending.size_bytes += size_bytes

    def take(self, position: FeedPosition) -> list[FeedEvent]:
        """Remove and return all events.

        `position` is the position of a client before the first of them.
        """
        events = []
        for pending in self._events:
            event = pending.event
            if pending.has_rows:
                position = position.with_seq(cast("RowKind", event.kind), pending.last)
                event = with_rows(cast("RowEvent", event), pending.after, pending.last, pending.rows)
            events.append(FeedEvent(event, position))
        self._events = []
        return events

    def _mergeable(self, event: RowEvent) -> _Pending | None:
        is_log = isinstance(event, TrainingLog)
        for pending in reversed(self._events):
            if isinstance(pending.event, TrainingLog) is is_log:
                return pending if pending.accepts_rows_of(event) else None
        return None


def _announces_rows(item: object) -> TypeGuard[RowEvent]:
    """Return whether a queued item is an event about new rows: it contains them, or only their range of `seq`."""
    return isinstance(item, (TrainingLog, TrainingProgress, TrainingCheckpoint)) and item.last_seq is not None


def _carries_rows(event: RowEvent) -> bool:
    return getattr(event, ROW_KINDS[cast("RowKind", event.kind)].items) is not None


def _range_of(event: RowEvent) -> tuple[RowKind, int, int]:
    """Return the kind of an event's rows, and their first and last `seq`."""
    return cast("RowKind", event.kind), cast("int", event.first_seq), cast("int", event.last_seq)
