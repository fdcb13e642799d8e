"""What Loki still has of rows that retention removed from Postgres: their number is known, not their text."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from stores.loki import part_of, parts_of, seq_of
from stores.loki_query import LokiLine
from workers.sinks.row_sums import Ranges, sum_up

MANY: Final = 255


@dataclass(frozen=True)
class Removed:
    """Where the removed rows are; `gone` are those that are neither in Loki nor dead letters."""

    rows: int = 0
    in_loki: int = 0
    dead_lettered: int = 0
    gone: Ranges = ()
    twice: Ranges = ()

    @property
    def line(self) -> str:
        """The sum in one line."""
        return (
            f"{self.rows:,} removed by retention {'≠' if self.gone else '='} {self.in_loki:,} in Loki + "
            f"{self.dead_lettered:,} dead-lettered"
        )


class RemovedRows:
    """Counts the copies of each removed row, one byte a row; `ranges` are their numbers."""

    def __init__(self, ranges: Ranges) -> None:
        self._ranges = ranges
        self._copies = bytearray(ranges[-1][1] + 1 if ranges else 0)
        self._parts: dict[int, bytearray] = {}

    def check(self, line: LokiLine) -> bool:
        """Tick off what Loki has; False where it is no removed row's."""
        seq = seq_of(line) or 0
        if not any(first <= seq <= last for first, last in self._ranges):
            return False
        number, parts = part_of(line), parts_of(line)
        if number <= parts > 1:
            copies, place = self._parts.setdefault(seq, bytearray(parts)), number - 1
        else:
            copies, place = self._copies, seq
        if place < len(copies):
            copies[place] = min(copies[place] + 1, MANY)
        return True

    def sum_up(self, dead_lettered: Collection[int]) -> Removed:
        """Say where each row is."""
        found = sum_up(self._rows(), dead_lettered)
        return Removed(found.rows, found.in_sink, found.dead_lettered, found.missing, found.twice)

    def _rows(self) -> Iterator[tuple[int, int, int]]:
        """Yield each row with the fewest and the most copies that Loki has of one of its parts."""
        for first, last in self._ranges:
            for seq in range(first, last + 1):
                parts, whole = self._parts.get(seq, b"\0"), self._copies[seq]
                yield seq, max(min(parts), whole), max(*parts, whole)
