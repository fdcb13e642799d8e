"""One job's live feed: what its clients have, what came, what must be read. No network, no clock, no database.

Whatever is lost, doubled or in another order on the way from the notifier, every row is said once, in order:
rows follow the last one, or wait until those between have been read from Postgres.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple, TypeAlias, cast

from msgspec.structs import replace

from trainwire.gateway.feed.job_state import Standing, news
from trainwire.gateway.feed.merging import Merged, Said
from trainwire.gateway.feed.positions import Position
from trainwire.gateway.feed.recent_rows import Recent
from trainwire.gateway.feed.rows import Hole, Rows, carried, event_of, has_state, with_rows
from trainwire.schemas.events import Event, TrainingCheckpoint, TrainingLog, TrainingProgress
from trainwire.schemas.kinds import ROW_KINDS, RowEvent, RowKind

MAX_HEARD: Final = 1000
"""Beyond so many events that wait for Postgres they are dropped: the next look at the job finds their rows."""


class Look(NamedTuple):
    """The row of training_jobs, and how much had been heard of the job's state before it was read."""

    position: Position
    standing: Standing
    heard: int


class _Reach(NamedTuple):
    """Rows of a kind are known to exist up to here."""

    kind: RowKind
    last: int


class _Compare(NamedTuple):
    standing: Standing
    heard: int


_Item: TypeAlias = Event | _Reach | _Compare


class JobFeed:
    """What is said about one job to all of its clients."""

    def __init__(self, job_id: int, look: Look) -> None:
        self.job_id = job_id
        self.position = look.position
        """What a client has that has got everything said so far."""
        self.heard = look.heard
        """How many events that tell the job's state have come."""
        self._have = look.position
        self._standing = look.standing
        self._items: deque[_Item] = deque()
        self._next = Merged()
        self._recent = {kind: Recent(kind, look.position.of(kind)) for kind in ROW_KINDS}

    def hear(self, event: Event) -> None:
        """Take what the notifier said."""
        self.heard += has_state(event)
        if len(self._items) >= MAX_HEARD:
            self._items.clear()
        self._items.append(event)

    def learn(self, look: Look) -> None:
        """Take what Postgres says: rows up to its position exist, and the job stands like that."""
        for kind in ROW_KINDS:
            self._items.append(_Reach(kind, look.position.of(kind)))
        self._items.append(_Compare(look.standing, look.heard))

    def advance(self) -> Hole | None:
        """Work through what came; return the rows that must be read before it goes on, None where all is done."""
        while self._items:
            hole = self._digest(self._items[0])
            if hole is None:
                self._items.popleft()
            elif not self._bring_forward(hole):
                return hole
        return None

    def fill(self, rows: Rows) -> None:
        """Take rows that were read for the hole of `advance`; what claimed rows that do not exist is dropped."""
        have = self._have.of(rows.kind)
        if rows.last <= have:
            if self._items:
                self._items.popleft()
        elif rows.have <= have:
            items = rows.after(have)
            self._say_rows(event_of(self.job_id, self._standing, rows.kind, items), rows._replace(items=items))

    def take(self) -> list[Said]:
        """Return what is to be said now to those who have everything said before."""
        said = self._next.take(self.position)
        self.position = self._have
        return said

    def missed(self, position: Position) -> Said | Hole | None:
        """Return the next that somebody lacks: in an event, or as a hole to be read; None where nothing is."""
        for kind in ROW_KINDS:
            have, last = position.of(kind), self.position.of(kind)
            if have < last:
                rows = self._recent[kind].after(have, last)
                return Hole(kind, have, last) if rows is None else self.said_of(rows, position)
        return None

    def said_of(self, rows: Rows, position: Position) -> Said:
        """Return rows as an event for somebody who is at `position`."""
        have = position.of(rows.kind)
        last = min(rows.last, self.position.of(rows.kind))
        items = [row for row in rows.after(have) if row.seq <= last]
        event = event_of(self.job_id, self._standing, rows.kind, items)
        return Said(with_rows(event, have, last, items), position.moved(rows.kind, last))

    def _digest(self, item: _Item) -> Hole | None:
        """Say what an item brings; return the hole before it where there is one."""
        match item:
            case _Reach():
                have = self._have.of(item.kind)
                return Hole(item.kind, have, item.last) if item.last > have else None
            case _Compare():
                if item.heard == self.heard:
                    for event in news(self.job_id, self._standing, item.standing):
                        self._say_state(event)
                    self._standing = item.standing
                return None
            case TrainingLog() | TrainingProgress() | TrainingCheckpoint() if item.last_seq is not None:
                return self._digest_rows(item)
        if not self._standing.outdates(item):
            self._say_state(item)
        return None

    def _digest_rows(self, event: RowEvent) -> Hole | None:
        kind, first, last = _range(event)
        have = self._have.of(kind)
        if last <= have:
            return None
        if first > have + 1:
            return Hole(kind, have, first - 1)
        rows = carried(event)
        if rows is None:
            # Its rows first, then what it says of the job.
            self._items[0] = replace(event, first_seq=None, last_seq=None)
            self._items.appendleft(_Reach(kind, last))
            return Hole(kind, have, last)
        self._say_rows(event, Rows(kind, have, last, [row for row in rows if row.seq > have]))
        return None

    def _bring_forward(self, hole: Hole) -> bool:
        """Say the rows that follow, if they are here and have only been overtaken."""
        for index, item in enumerate(self._items):
            if not isinstance(item, (TrainingLog, TrainingProgress, TrainingCheckpoint)) or item.last_seq is None:
                continue
            kind, first, last = _range(item)
            if kind == hole.kind and first <= hole.have + 1 <= last and carries_rows(item):
                del self._items[index]
                self._digest_rows(item)
                return True
        return False

    def _say_state(self, event: Event) -> None:
        if isinstance(event, TrainingLog):
            return  # its rows are said, and it says no more
        self._standing = self._standing.after(event)
        self._next.add_state(event)

    def _say_rows(self, event: RowEvent, rows: Rows) -> None:
        if self._standing.outdates(event):
            event = event_of(self.job_id, self._standing, rows.kind, rows.items)
        self._standing = self._standing.after(event)
        self._next.add_rows(event, rows.have, rows.last, list(rows.items))
        self._recent[rows.kind].add(rows.items)
        self._have = self._have.moved(rows.kind, rows.last)


def carries_rows(event: RowEvent) -> bool:
    """Tell whether an event has its rows with it."""
    return getattr(event, ROW_KINDS[cast("RowKind", event.kind)].items) is not None


def _range(event: RowEvent) -> tuple[RowKind, int, int]:
    """Return the kind and the `seq` of the first and last row of an event that has some."""
    return cast("RowKind", event.kind), cast("int", event.first_seq), cast("int", event.last_seq)
