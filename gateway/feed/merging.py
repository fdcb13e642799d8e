"""Merges events, so that many small transactions become one frame for each client."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple, cast

from msgspec.structs import replace

from trainwire.gateway.feed.positions import Position
from trainwire.gateway.feed.rows import MAX_ROWS, Row, with_rows
from trainwire.schemas.events import Event, TrainingLog, TrainingProgress
from trainwire.schemas.kinds import RowEvent, RowKind

MAX_ROW_BYTES: Final = 256 * 1024
"""An event takes no more rows once it is this large."""


class Said(NamedTuple):
    """One event for all clients, and the position of who has got it."""

    event: Event
    position: Position


@dataclass
class _Part:
    """An event that is not said yet; where it has rows, those after `have` through `last`."""

    event: Event
    have: int = 0
    last: int = 0
    rows: list[Row] = field(default_factory=list)
    size_bytes: int = 0

    @property
    def has_range(self) -> bool:
        return self.last > self.have

    def takes(self, event: RowEvent) -> bool:
        """Tell whether rows of this event, which follow, find room here."""
        return (
            type(event) is type(self.event)
            and self.has_range
            and len(self.rows) < MAX_ROWS
            and self.size_bytes < MAX_ROW_BYTES
        )


class Merged:
    """Gathers events in their order, and joins those that follow one another.

    Log lines say nothing about the job's state, so all of them stand at the first one's place; what does say it
    keeps its order.
    """

    def __init__(self) -> None:
        self._parts: list[_Part] = []

    def add_state(self, event: Event) -> None:
        """Add an event without rows."""
        self._parts.append(_Part(event))

    def add_rows(self, event: RowEvent, have: int, last: int, rows: list[Row]) -> None:
        """Add an event with the rows after `have` through `last`, which follow those before."""
        size_bytes = sum(row.size_bytes for row in rows)
        part = self._place_of(event)
        if part is None or len(part.rows) + len(rows) > MAX_ROWS:
            self._parts.append(_Part(event, have, last, rows, size_bytes))
            return
        part.event = _joined(cast("RowEvent", part.event), event)
        part.last = last
        part.rows += rows
        part.size_bytes += size_bytes

    def take(self, position: Position) -> list[Said]:
        """Return all that is to be said to who is at `position`, and begin anew."""
        said = []
        for part in self._parts:
            event = part.event
            if part.has_range:
                position = position.moved(cast("RowKind", event.kind), part.last)
                event = with_rows(cast("RowEvent", event), part.have, part.last, part.rows)
            said.append(Said(event, position))
        self._parts = []
        return said

    def _place_of(self, event: RowEvent) -> _Part | None:
        is_log = isinstance(event, TrainingLog)
        for part in reversed(self._parts):
            if isinstance(part.event, TrainingLog) is is_log:
                return part if part.takes(event) else None
        return None


def _joined(earlier: RowEvent, later: RowEvent) -> RowEvent:
    """Return the later event; the values of the newest point stay where it brings none."""
    if isinstance(later, TrainingProgress) and isinstance(earlier, TrainingProgress) and later.metrics is None:
        return replace(later, metrics=earlier.metrics)
    return later
