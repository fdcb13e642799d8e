"""Ranges of row numbers, as a comparison of a sink with Postgres reports them."""

from __future__ import annotations

from collections.abc import Iterable


class Ranges(list[tuple[int, int]]):
    """A list of ascending numbers, stored as ranges (first, last), both included."""

    @property
    def total(self) -> int:
        """The count of numbers."""
        return sum(last - first + 1 for first, last in self)

    def add(self, seq: int) -> None:
        """Add a number that is higher than all others."""
        if self and self[-1][1] == seq - 1:
            self[-1] = (self[-1][0], seq)
        else:
            self.append((seq, seq))


def ranges_of(numbers: Iterable[int]) -> Ranges:
    """Return distinct numbers, in any order, as ranges."""
    ranges = Ranges()
    for number in sorted(numbers):
        ranges.add(number)
    return ranges
