"""The newest rows of a job in memory: who was away for a moment is served from here."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from trainwire.gateway.feed.rows import MAX_ROWS, Row, Rows
from trainwire.schemas.kinds import RowKind

KEPT_ROWS: Final = 4000
KEPT_BYTES: Final = 1024 * 1024


class Recent:
    """The last rows of one kind, without a hole; forgets the oldest beyond a number and a size."""

    def __init__(self, kind: RowKind, have: int) -> None:
        self._kind = kind
        self._floor = have
        self._rows: list[Row] = []
        self._size_bytes = 0

    def add(self, rows: Sequence[Row]) -> None:
        """Add the rows that follow the newest."""
        self._rows += rows
        self._size_bytes += sum(row.size_bytes for row in rows)
        self._forget()

    def after(self, have: int, last: int) -> Rows | None:
        """Return at most `MAX_ROWS` rows after `have` and up to `last`; None where the first are forgotten."""
        if have < self._floor:
            return None
        begin = bisect_right(self._rows, have, key=_seq)
        end = min(bisect_right(self._rows, last, key=_seq), begin + MAX_ROWS)
        is_all = end - begin < MAX_ROWS
        return Rows(self._kind, have, last if is_all else self._rows[end - 1].seq, self._rows[begin:end])

    def _forget(self) -> None:
        """Drop the older half of what is too much: a cut of the list costs as much as the list is long."""
        while self._size_bytes > KEPT_BYTES or len(self._rows) > KEPT_ROWS:
            half = (len(self._rows) + 1) // 2
            self._floor = self._rows[half - 1].seq
            self._size_bytes -= sum(row.size_bytes for row in self._rows[:half])
            del self._rows[:half]


def _seq(row: Row) -> int:
    return row.seq
