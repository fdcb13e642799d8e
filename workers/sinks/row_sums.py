"""The sum of a comparison: where the rows of a job are, from the number of copies that a sink has of each."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from math import inf

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class RowSums:
    """How many rows there are, and each of them in the sink, or a dead letter, or waiting, or missing."""

    rows: int
    in_sink: int
    dead_lettered: int
    waiting: int
    missing: Ranges
    twice: Ranges
    """The sink has more than one copy of these."""


def sum_up(
    copies: Iterable[tuple[int, int, int]], dead_lettered: Collection[int], confirmed_seq: float = inf
) -> RowSums:
    """Say where each row is: `copies` are its `seq`, by which they come, and the fewest and the most of one part.

    Rows after `confirmed_seq` that are nowhere are waiting.
    """
    rows = in_sink = dead = waiting = 0
    missing, twice = array("Q"), array("Q")
    for seq, fewest, most in copies:
        rows += 1
        if most > 1:
            twice.append(seq)
        if fewest:
            in_sink += 1
        elif seq in dead_lettered:
            dead += 1
        elif seq > confirmed_seq:
            waiting += 1
        else:
            missing.append(seq)
    return RowSums(rows, in_sink, dead, waiting, ranges_of(missing), ranges_of(twice))


def ranges_of(seqs: Iterable[int]) -> Ranges:
    """Return ascending numbers as ranges."""
    ranges: list[tuple[int, int]] = []
    for seq in seqs:
        if ranges and seq == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], seq)
        else:
            ranges.append((seq, seq))
    return tuple(ranges)


def count(ranges: Ranges) -> int:
    """Return how many numbers are in ranges."""
    return sum(last - first + 1 for first, last in ranges)
