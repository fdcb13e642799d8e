"""Per source and kind: which message numbers have arrived, which will never come, and which are still missing."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

MAX_RANGES: Final = 10_000
"""Of one position: its row is written with each transaction, and no outage leaves so many holes."""
LostRange = tuple[int, int, str]
"""First and last number, both included, and the reason that the trainer gave."""


@dataclass(slots=True)
class Position:
    """Everything up to `last_seq` has arrived, except the ranges in `missing` and `lost`.

    Both are inclusive, ascending and disjoint. `lost` are the numbers that the source cannot send again: a trainer
    need not keep anything for them, and one that arrives nevertheless is taken.
    """

    last_seq: int = 0
    missing: list[tuple[int, int]] = field(default_factory=list)
    lost: list[LostRange] = field(default_factory=list)
    is_discarded: bool = False
    """The job was deleted: messages are acknowledged and not stored."""
    missing_count: int = field(init=False)
    lost_count: int = field(init=False)
    """How many numbers will never come. Both are kept, not counted: each entry may ask for them."""

    def __post_init__(self) -> None:
        """Count once what the lists hold."""
        self.missing_count, self.lost_count = _count(self.missing), _count(self.lost)

    def would_scatter(self, first: int, last: int, *, lost: bool = False) -> bool:
        """Return whether `first` to `last`, arrived or `lost`, would leave too many separate ranges."""
        if len(self.missing) + len(self.lost) < MAX_RANGES:
            return False
        if last > self.last_seq:
            return lost or first > self.last_seq + 1
        if not lost:
            return any(_is_inside(ranges, first, last) for ranges in (self.missing, self.lost))
        # Each gap that is lost as a whole only changes lists; the rest of one would be one range more.
        start, end = _overlapping(self.missing, first, last)
        return start < end and (self.missing[start][0] < first or last < self.missing[end - 1][1])

    def accept(self, seq: int) -> bool:
        """Take note that `seq` arrived; return False when it had arrived before (a resend)."""
        if seq > self.last_seq:
            self._extend(seq - 1)
            self.last_seq = seq
            return True
        return self._fill(seq)

    def lose(self, first: int, last: int, reason: str) -> int:
        """Count the missing numbers from `first` to `last` as lost, with the reason; return how many there are."""
        self._extend(last)
        start, end = _overlapping(self.missing, first, last)
        if start == end:
            return 0
        gaps = self.missing[start:end]
        self.missing[start:end] = _outside((gaps[0][0], gaps[-1][1]), first, last)
        gone = [(max(first, a), min(last, b)) for a, b in gaps]
        for a, b in gone:
            self._add_lost(a, b, reason)
        count = sum(b - a + 1 for a, b in gone)
        self.missing_count -= count
        self.lost_count += count
        return count

    def expect(self, last: int) -> list[tuple[int, int]]:
        """Take note that there are numbers up to `last`; return the ranges up to there that are missing."""
        self._extend(last)
        return [(first, min(end, last)) for first, end in self.missing if first <= last]

    def reopen(self, seq: int) -> bool:
        """Forget that `seq` arrived, so that it may come again; return False where it has not arrived."""
        missing, lost = _overlapping(self.missing, seq, seq), _overlapping(self.lost, seq, seq)
        if not 1 <= seq <= self.last_seq or missing[0] < missing[1] or lost[0] < lost[1]:
            return False
        self.missing.insert(missing[0], (seq, seq))
        self.missing_count += 1
        return True

    @property
    def contiguous(self) -> int:
        """The highest number up to which nothing is missing: a trainer may forget all up to here."""
        return self.missing[0][0] - 1 if self.missing else self.last_seq

    @property
    def received(self) -> int:
        """How many messages have arrived."""
        return self.last_seq - self.missing_count - self.lost_count

    def missing_text(self) -> str:
        """Return the missing ranges as trainers read them: `3-5,9-9`."""
        return ",".join(f"{first}-{last}" for first, last in self.missing)

    def _extend(self, last: int) -> None:
        """Take note that the numbers up to `last` exist; those beyond `last_seq` are missing."""
        if last > self.last_seq:
            self.missing.append((self.last_seq + 1, last))
            self.missing_count += last - self.last_seq
            self.last_seq = last

    def _fill(self, seq: int) -> bool:
        start, end = _overlapping(self.missing, seq, seq)
        if start < end:
            self.missing[start:end] = _outside(self.missing[start], seq, seq)
            self.missing_count -= 1
            return True
        start, end = _overlapping(self.lost, seq, seq)
        if start < end:
            first, last, reason = self.lost[start]
            self.lost[start:end] = [(a, b, reason) for a, b in _outside((first, last), seq, seq)]
            self.lost_count -= 1
            return True
        return False

    def _add_lost(self, first: int, last: int, reason: str) -> None:
        """Insert a range into `lost`; neighbours that have the same reason become one with it."""
        start = end = bisect_right(self.lost, first, key=_first)
        if start and self.lost[start - 1][1:] == (first - 1, reason):
            start -= 1
            first = self.lost[start][0]
        if end < len(self.lost) and (self.lost[end][0], self.lost[end][2]) == (last + 1, reason):
            last = self.lost[end][1]
            end += 1
        self.lost[start:end] = [(first, last, reason)]


def _first(numbers: tuple[Any, ...]) -> int:
    return int(numbers[0])


def _overlapping(ranges: Sequence[tuple[Any, ...]], first: int, last: int) -> tuple[int, int]:
    """Return the slice of `ranges` (ascending, disjoint) that have a number of `first` to `last`."""
    end = bisect_right(ranges, last, key=_first)
    start = bisect_right(ranges, first, hi=end, key=_first)
    return (start - 1 if start and ranges[start - 1][1] >= first else start), end


def _is_inside(ranges: Sequence[tuple[Any, ...]], first: int, last: int) -> bool:
    """Return whether one of `ranges` reaches beyond `first` to `last` on both sides."""
    start, end = _overlapping(ranges, first, last)
    return end - start == 1 and ranges[start][0] < first and last < ranges[start][1]


def _outside(gap: tuple[int, int], first: int, last: int) -> list[tuple[int, int]]:
    """Return the parts of a range that are not in `first` to `last`."""
    return [part for part in ((gap[0], first - 1), (last + 1, gap[1])) if part[0] <= part[1]]


def _count(ranges: Sequence[tuple[Any, ...]]) -> int:
    return sum(each[1] - each[0] + 1 for each in ranges)
