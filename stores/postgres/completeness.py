"""The sum that proves that nothing is lost: produced = stored + dead-lettered + missing + lost + dropped.

One word for its state, the same everywhere: docs/concepts.md has the table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal

from trainwire.schemas.messages import FINISHED, Status
from trainwire.stores.postgres.ranks import AbsentRanks, absent_ranks

State = Literal["open", "incomplete", "unproven", "accounted", "complete"]
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
    rank: int | None = None
    world_size: int | None = None
    is_launcher: bool = False
    began_at: datetime | None = None

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
    def has_completion(self) -> bool:
        """Return whether a completion of the source itself is stored.

        One whose `produced` counts no completion was made up for it (docs/wire-format.md).
        """
        stored = self.last_seq - _count(self.missing) - _count(self.lost_ranges) - self.dead_lettered
        return self.kind == "completions" and stored > 0 and self.produced != 0


@dataclass(frozen=True)
class Completeness:
    """Where all messages of a job are, and of which of its processes that is not known."""

    produced: int
    stored: int
    dead_lettered: int
    missing: int
    dropped: int
    gaps: tuple[Position, ...]
    status: Status
    attempt: int
    open_sources: tuple[str, ...]
    """Sources of the newest attempt that have not ended: more may come of them."""
    silent_sources: tuple[str, ...]
    """Sources that ended without a completion of their own: what they made beyond this is unknown."""
    lost: int = 0
    """Messages that their trainers cannot send again, for example after a restore of Postgres."""
    lost_by_reason: Mapping[str, int] = field(default_factory=dict)
    losses: tuple[Position, ...] = ()
    absent_ranks: tuple[AbsentRanks, ...] = ()
    """Ranks that have not reported: whether they made anything is unknown."""
    uncounted_sources: tuple[str, ...] = ()
    """Sources whose completion does not count each kind that they sent: whether they made more is unknown."""
    unnumbered: Mapping[str, int] = field(default_factory=dict)
    """Dead letters by source that are no part of the sum: their numbers cannot be believed, or they have none."""

    @property
    def state(self) -> State:
        """Return the one word for it, the first that is true.

        `open`: more messages may come. `incomplete`: numbered messages have not arrived. `unproven`: all of them
        have, but nobody knows whether there are more. `accounted`: there are none, and some of them are counted as
        dead-lettered, lost or dropped. `complete`: all are stored.
        """
        is_over = self.status == "lost" or (self.status in FINISHED and not self.open_sources)
        if not is_over or not self.produced:
            return "open"
        if self.missing:
            return "incomplete"
        doubts = (self.silent_sources, self.uncounted_sources, self.absent_ranks, self.unnumbered)
        if any(doubts) or self.status == "lost":
            return "unproven"
        return "accounted" if self.dead_lettered or self.lost or self.dropped else "complete"

    @property
    def may_grow(self) -> bool:
        """Return whether more rows may come: `trainwire logs -f` waits for them."""
        return self.state in ("open", "incomplete") or bool(self.absent_ranks)

    @property
    def line(self) -> str:
        """The whole sum in one line, with the gaps by number."""
        total = (
            f"{self.produced:,} messages produced = {self.stored:,} stored + "
            f"{self.dead_lettered:,} dead-lettered + {self.missing:,} missing + {self._named_lost()}"
            f"{self.dropped:,} dropped"
        )
        named = f"{self._named_gaps()}{self._named_losses()}{self._named_silent()}{self._named_ranks()}"
        named += f"{self._named_uncounted()}{self._named_unnumbered()}"
        return f"{self.state}: {total}{named}"

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

    def _named_uncounted(self) -> str:
        if not self.uncounted_sources:
            return ""
        return f"; completed without `produced` of every kind: {_listed(list(self.uncounted_sources), ', ')}"

    def _named_ranks(self) -> str:
        if not self.absent_ranks:
            return ""
        named = [ranks.shown(self.attempt) for ranks in self.absent_ranks]
        return f"; not reported: {_listed(named, '; ')}"

    def _named_unnumbered(self) -> str:
        named = [f"{count:,} of {source}" for source, count in self.unnumbered.items()]
        return f"; dead letters beyond the sum: {_listed(named, ', ')}" if named else ""


def assess(
    positions: Iterable[Position], attempt: int, status: Status, unnumbered: Mapping[str, int] | None = None
) -> Completeness:
    """Add up the positions of a job whose newest attempt is `attempt`, and has this status.

    `unnumbered` are its dead letters that no position counts, by source.
    """
    rows = sorted(positions, key=lambda row: (row.source, row.kind))
    ended = {row.source for row in rows if row.has_completion}
    # Their end was inferred by whoever sent their leftovers.
    killed = {row.source for row in rows if row.produced is not None} - ended
    quiet = {row.source for row in rows} - ended - killed
    uncounted = {row.source for row in rows if row.last_seq and row.produced is None} & ended
    # A lost attempt is given up, and so is one that another has followed.
    open_sources = {row.source for row in rows if row.attempt >= attempt} & quiet if status != "lost" else set()
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
        status=status,
        attempt=attempt,
        open_sources=tuple(sorted(open_sources)),
        silent_sources=tuple(sorted(killed | quiet - open_sources)),
        absent_ranks=absent_ranks(rows),
        uncounted_sources=tuple(sorted(uncounted)),
        unnumbered=unnumbered or {},
    )


def shown_ranges(ranges: Sequence[tuple[int, int]]) -> str:
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
