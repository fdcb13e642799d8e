"""The sum that proves that nothing is lost: produced = stored + dead-lettered + missing + lost + dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

State = Literal["so far", "complete", "incomplete"]
SHOWN_RANGES: Final = 10
SHOWN_SOURCES: Final = 5


@dataclass(frozen=True)
class Position:
    """How far one source has come with one kind: a row of source_positions."""

    source: str
    kind: str
    attempt: int
    last_seq: int
    missing: tuple[tuple[int, int], ...] = ()
    dead_lettered: int = 0
    produced: int | None = None
    dropped: int | None = None
    lost: tuple[tuple[int, int, str], ...] = ()
    """Numbers that the source has declared lost: first, last and the reason of each range."""

    @property
    def made(self) -> int:
        """How many messages the source has numbered, as far as is known."""
        return max(self.produced or 0, self.last_seq)

    @property
    def gaps(self) -> tuple[tuple[int, int], ...]:
        """The numbers that never arrived, as ranges, the end of the stream included."""
        tail = ((self.last_seq + 1, self.made),) if self.made > self.last_seq else ()
        return _joined(self.missing + tail)

    @property
    def lost_ranges(self) -> tuple[tuple[int, int], ...]:
        """The numbers that will never come, as ranges."""
        return tuple((first, last) for first, last, _ in self.lost)

    @property
    def ends_source(self) -> bool:
        """Tell whether this row shows that the source's completion came."""
        if self.produced is not None:
            return True
        absent = _count(self.missing) + _count(self.lost_ranges)
        return self.kind == "completions" and self.last_seq - absent > self.dead_lettered

    @property
    def is_of_killed(self) -> bool:
        """Tell whether the source was killed, and another one told how much it had made."""
        return self.kind == "completions" and self.produced == 0


@dataclass(frozen=True)
class Completeness:
    """Where all messages of a job are; `open_sources` have not said yet how many they make."""

    produced: int
    stored: int
    dead_lettered: int
    missing: int
    dropped: int
    gaps: tuple[Position, ...]
    open_sources: tuple[str, ...]
    silent_sources: tuple[str, ...]
    """Sources that ended without a completion of their own: what they made beyond this is unknown."""
    lost: int = 0
    """Messages that their trainers cannot send again, for example after a restore of Postgres."""
    lost_by_reason: Mapping[str, int] = field(default_factory=dict)
    losses: tuple[Position, ...] = ()

    @property
    def state(self) -> State:
        """`so far` until all sources of the attempt have ended; then whether a message is missing."""
        if self.open_sources or not self.produced:
            return "so far"
        return "incomplete" if self.missing else "complete"

    @property
    def line(self) -> str:
        """The whole sum in one line, with the gaps by number."""
        total = (
            f"{self.produced:,} messages produced = {self.stored:,} stored + "
            f"{self.dead_lettered:,} dead-lettered + {self.missing:,} missing + {self._named_lost()}"
            f"{self.dropped:,} dropped"
        )
        return f"{self._heading()}: {total}{self._named_gaps()}{self._named_losses()}{self._named_silent()}"

    def _heading(self) -> str:
        exceptions = [("dead-lettered", self.dead_lettered), ("lost", self.lost), ("dropped", self.dropped)]
        named = " and ".join(f"{count:,} {word}" for word, count in exceptions if count)
        return f"complete but for {named}" if named and self.state == "complete" else self.state

    def _named_gaps(self) -> str:
        named = [f"{row.kind} of {row.source}: {shown_ranges(row.gaps)}" for row in self.gaps]
        return f"; missing: {_listed(named, '; ')}" if named else ""

    def _named_lost(self) -> str:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.lost_by_reason.items())
        return f"{self.lost:,} lost ({reasons}) + " if self.lost else ""

    def _named_losses(self) -> str:
        named = [f"{row.kind} of {row.source}: {shown_ranges(row.lost_ranges)}" for row in self.losses]
        return f"; lost: {_listed(named, '; ')}" if named else ""

    def _named_silent(self) -> str:
        if not self.silent_sources:
            return ""
        return f"; ended without a completion: {_listed(list(self.silent_sources), ', ')}"


def assess(positions: Iterable[Position], attempt: int) -> Completeness:
    """Add up the positions of a job that is in `attempt`."""
    rows = sorted(positions, key=lambda row: (row.source, row.kind))
    ended = {row.source for row in rows if row.ends_source}
    killed = tuple(row.source for row in rows if row.is_of_killed)
    quiet = {row.source: row.attempt for row in rows if row.source not in ended}
    made = sum(row.made for row in rows)
    missing = sum(_count(row.gaps) for row in rows)
    dead_lettered = sum(row.dead_lettered for row in rows)
    dropped = sum(row.dropped or 0 for row in rows)
    lost_by_reason = Counter[str]()
    for row in rows:
        for first, last, reason in row.lost:
            lost_by_reason[reason] += last - first + 1
    lost = lost_by_reason.total()
    return Completeness(
        # What a trainer drops it drops before it is numbered, so it comes on top of the numbers.
        produced=made + dropped,
        stored=made - missing - dead_lettered - lost,
        dead_lettered=dead_lettered,
        missing=missing,
        dropped=dropped,
        lost=lost,
        lost_by_reason=lost_by_reason,
        losses=tuple(row for row in rows if row.lost),
        gaps=tuple(row for row in rows if row.gaps),
        open_sources=tuple(source for source, of in quiet.items() if of >= attempt),
        silent_sources=killed + tuple(source for source, of in quiet.items() if of < attempt),
    )


def shown_ranges(ranges: tuple[tuple[int, int], ...]) -> str:
    """Return ranges as people write them: `7, 9-12`."""
    named = [str(first) if first == last else f"{first}-{last}" for first, last in ranges[:SHOWN_RANGES]]
    more = len(ranges) - SHOWN_RANGES
    return ", ".join(named) + (f" and {more:,} more" if more > 0 else "")


def _listed(named: list[str], separator: str) -> str:
    more = len(named) - SHOWN_SOURCES
    return separator.join(named[:SHOWN_SOURCES]) + (f" and {more:,} more" if more > 0 else "")


def _count(ranges: Iterable[tuple[int, int]]) -> int:
    return sum(last - first + 1 for first, last in ranges)


def _joined(ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return tuple(joined)
