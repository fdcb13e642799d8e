"""Defines ranges of row numbers, as comparisons of a sink with Postgres report them."""

from __future__ import annotations

from collections.abc import Iterable


class Ranges(list[tuple[int, int]]):
    """A list of ranges (first, last) of ascending numbers, both included."""

    @property
    def total(self) -> int:
        """How many numbers the ranges contain."""
        return sum(last - first + 1 for first, last in self)

    def add(self, seq: int) -> None:
        """Add a number that is higher than all numbers in the ranges."""
        if self and self[-1][1] == seq - 1:
            self[-1] = (self[-1][0], seq)
        else:
            self.append((seq, seq))


def ranges_of(numbers: Iterable[int]) -> Ranges:
    """Return distinct numbers, given in any order, as ranges."""
    ranges = Ranges()
    for number in sorted(numbers):
        ranges.add(number)
    return ranges
