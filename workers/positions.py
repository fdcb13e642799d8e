"""Per source and kind: which message numbers have arrived, which will never come, and which are still missing."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

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

    def would_scatter(self, first: int, last: int, *, lost: bool = False) -> bool:
        """Return whether `first` to `last`, arrived or `lost`, would leave too many separate ranges."""
        if len(self.missing) + len(self.lost) < MAX_RANGES:
            return False
        if last > self.last_seq:
            return lost or first > self.last_seq + 1
        known = [(a, b) for a, b, _ in self.lost]
        for ranges in (self.missing, known):
            index = bisect_right(ranges, first, key=lambda gap: gap[0]) - 1
            if index >= 0 and ranges[index][0] < first and last < ranges[index][1]:
                return True
        return False

    def accept(self, seq: int) -> bool:
        """Take note that `seq` arrived; return False when it had arrived before (a resend)."""
        if seq == self.last_seq + 1:
            self.last_seq = seq
            return True
        if seq > self.last_seq:
            self.missing.append((self.last_seq + 1, seq - 1))
            self.last_seq = seq
            return True
        return self._fill(seq)

    def lose(self, first: int, last: int, reason: str) -> int:
        """Take note that of `first` to `last` those that are missing will never come; return their number."""
        gone = [(max(first, a), b) for a, b in self.expect(last) if b >= first]
        self.missing = [part for gap in self.missing for part in _outside(gap, first, last)]
        self.lost = _merged([*self.lost, *((a, b, reason) for a, b in gone)])
        return sum(b - a + 1 for a, b in gone)

    def expect(self, last: int) -> list[tuple[int, int]]:
        """Take note that there are numbers up to `last`; return the ranges up to there that are missing."""
        if last > self.last_seq:
            self.missing.append((self.last_seq + 1, last))
            self.last_seq = last
        return [(first, min(end, last)) for first, end in self.missing if first <= last]

    def reopen(self, seq: int) -> None:
        """Forget that `seq` arrived, so that it may come again."""
        index = bisect_right(self.missing, (seq, seq))
        self.missing.insert(index, (seq, seq))

    @property
    def contiguous(self) -> int:
        """The highest number up to which nothing is missing: a trainer may forget all up to here."""
        return self.missing[0][0] - 1 if self.missing else self.last_seq

    @property
    def received(self) -> int:
        """How many messages have arrived."""
        return self.last_seq - sum(last - first + 1 for first, last in self.missing) - self.lost_count

    @property
    def lost_count(self) -> int:
        """How many numbers will never come."""
        return sum(last - first + 1 for first, last, _ in self.lost)

    def missing_text(self) -> str:
        """Return the missing ranges as trainers read them: `3-5,9-9`."""
        return ",".join(f"{first}-{last}" for first, last in self.missing)

    def _fill(self, seq: int) -> bool:
        index = bisect_right(self.missing, seq, key=lambda gap: gap[0]) - 1
        if index >= 0 and seq <= self.missing[index][1]:
            self.missing[index : index + 1] = _outside(self.missing[index], seq, seq)
            return True
        index = bisect_right(self.lost, seq, key=lambda gap: gap[0]) - 1
        if index >= 0 and seq <= self.lost[index][1]:
            first, last, reason = self.lost[index]
            self.lost[index : index + 1] = [(a, b, reason) for a, b in _outside((first, last), seq, seq)]
            return True
        return False


def _outside(gap: tuple[int, int], first: int, last: int) -> list[tuple[int, int]]:
    """Return the parts of a range that are not in `first` to `last`."""
    if gap[1] < first or gap[0] > last:
        return [gap]
    return [part for part in ((gap[0], first - 1), (last + 1, gap[1])) if part[0] <= part[1]]


def _merged(ranges: Iterable[LostRange]) -> list[LostRange]:
    """Return the ranges in order; neighbours that have the same reason become one."""
    merged: list[LostRange] = []
    for first, last, reason in sorted(ranges):
        if merged and (merged[-1][1], merged[-1][2]) == (first - 1, reason):
            merged[-1] = (merged[-1][0], last, reason)
        else:
            merged.append((first, last, reason))
    return merged
