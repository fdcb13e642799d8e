"""Defines ranges of row numbers, in which comparisons of a sink with Postgres report differences."""

from __future__ import annotations

from collections.abc import Iterable

from trainwire.stores.postgres.source_positions import count_numbers


class Ranges(list[tuple[int, int]]):
    """A list of ranges (first, last) of ascending numbers, both included."""

    @property
    def total(self) -> int:
        """The number of row numbers in the ranges."""
        return count_numbers(self)

    def add(self, seq: int) -> None:
        """Add a number that is higher than all numbers in the ranges."""
        if self and self[-1][1] == seq - 1:
            self[-1] = (self[-1][0], seq)
        else:
            self.append((seq, seq))


def ranges_of(numbers: Iterable[int]) -> Ranges:
    """Convert distinct numbers in any order to ranges."""
    ranges = Ranges()
    for number in sorted(numbers):
        ranges.add(number)
    return ranges
