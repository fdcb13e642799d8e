"""The comparison of what Loki has with what Postgres has, line by line."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain

from stores.completeness import shown_ranges
from stores.loki import part_of, seq_of
from stores.loki_query import LokiLine
from workers.sinks.loki.lines import entries_of
from workers.sinks.loki.removed_rows import MANY, Removed, RemovedRows
from workers.sinks.loki.rows import LogRow
from workers.sinks.row_sums import Ranges, count, ranges_of, sum_up


@dataclass(frozen=True)
class Comparison:
    """Where all rows of a job are, and what is wrong, as ranges of `seq`."""

    in_postgres: int
    in_loki: int
    dead_lettered: int
    waiting: int
    missing: Ranges
    twice: Ranges
    different: Ranges
    """Another text, time or output (stdout, stderr) than in Postgres."""
    unknown: Ranges
    """In Loki, not in Postgres."""
    unnumbered: int
    """In Loki without a `seq`: somebody else wrote them."""
    lost: Ranges
    """Not in Postgres, though the job had these rows and retention has not removed them."""
    removed: Removed

    @property
    def is_verified(self) -> bool:
        """Tell whether nothing differs; what waits for its delivery is no difference, nor what retention removed.

        But a removed row that Loki does not have either is.
        """
        faults = (self.missing, self.twice, self.different, self.strangers, self.lost, self.removed.gone)
        return not any(faults)

    @property
    def strangers(self) -> int:
        """How many lines Loki has that Postgres does not have."""
        return count(self.unknown) + self.unnumbered

    @property
    def line(self) -> str:
        """The whole comparison in one line."""
        heading, equals = ("verified" if self.is_verified else "differs"), ("≠" if self.missing else "=")
        strangers = f", {self.strangers:,} not in Postgres" if self.strangers else ""
        lost = f", {count(self.lost):,} lost from Postgres" if self.lost else ""
        removed = f"; {self.removed.line}" if self.removed.rows else ""
        return (
            f"{heading}: {self.in_postgres:,} lines in Postgres {equals} {self.in_loki:,} in Loki + "
            f"{self.dead_lettered:,} dead-lettered + {self.waiting:,} waiting; {count(self.missing):,} missing, "
            f"{count(self.twice):,} twice, {count(self.different):,} different{strangers}{lost}{removed}"
        )

    @property
    def differences(self) -> list[str]:
        """One line for each kind of difference, with the numbers of the lines."""
        named = (
            ("missing in Loki", self.missing),
            ("twice in Loki", self.twice),
            ("different in Loki", self.different),
            ("in Loki, not in Postgres", self.unknown),
            ("lost from Postgres", self.lost),
            ("removed by retention, not in Loki", self.removed.gone),
        )
        lines = [f"{name}: {shown_ranges(ranges)}" for name, ranges in named if ranges]
        return [*lines, f"in Loki without a number: {self.unnumbered:,}"] if self.unnumbered else lines


def compare(
    rows: Iterable[LogRow],
    lines: Iterable[LokiLine],
    *,
    last_seq: int,
    removed_seq: Callable[[], int],
    confirmed_seq: int,
    dead_lettered: Collection[int],
) -> Comparison:
    """Compare rows, which come by `seq`, with Loki's lines, which come in any order.

    The job has had the rows 1 to `last_seq`. `removed_seq` tells up to which row retention has removed them,
    called after the last row has come, for retention may be at work. Rows after `confirmed_seq` that Loki does not
    have are waiting. 17 bytes are kept of a row, none of its text.
    """
    ledger = _Ledger()
    for row in rows:
        ledger.expect(row)
    ledger.close(removed_seq(), last_seq)
    for line in lines:
        ledger.check(line)
    return ledger.sum_up(confirmed_seq, dead_lettered)


class _Ledger:
    """An entry for each row, or for each part of a row that is split; a row's parts stand side by side."""

    def __init__(self) -> None:
        self._seqs = array("Q")
        self._digests = array("Q")
        self._copies = bytearray()
        self._different: set[int] = set()
        self._unknown = array("Q")
        self._unnumbered = 0
        self._lost: Ranges = ()
        self._removed = RemovedRows(())

    def expect(self, row: LogRow) -> None:
        """Enter what Loki must have of a row."""
        for _, text, _ in entries_of(row):
            self._seqs.append(row.seq)
            self._digests.append(_digest(int(row.ts_ns), row.log_type, text))
            self._copies.append(0)

    def close(self, removed_seq: int, last_seq: int) -> None:
        """Find which rows up to `last_seq` have not been entered: removed up to `removed_seq`, lost after it."""
        removed, lost, expected = [], [], 1
        for seq in chain(self._seqs, (last_seq + 1,)):
            if expected <= min(seq - 1, removed_seq):
                removed.append((expected, min(seq - 1, removed_seq)))
            if max(expected, removed_seq + 1) < seq:
                lost.append((max(expected, removed_seq + 1), seq - 1))
            expected = seq + 1
        self._removed, self._lost = RemovedRows(tuple(removed)), tuple(lost)

    def check(self, line: LokiLine) -> None:
        """Tick off what Loki has."""
        seq = seq_of(line)
        if seq is None:
            self._unnumbered += 1
            return
        first = bisect_left(self._seqs, seq)
        place = first + part_of(line) - 1
        if not self._is_of(first, seq):
            if not self._removed.check(line):
                self._unknown.append(seq)
        elif not self._is_of(place, seq):
            self._different.add(seq)
        else:
            self._copies[place] = min(self._copies[place] + 1, MANY)
            if _digest(line.ts_ns, line.label("log_type") or "", line.line) != self._digests[place]:
                self._different.add(seq)

    def sum_up(self, confirmed_seq: int, dead_lettered: Collection[int]) -> Comparison:
        """Say where each row is."""
        found = sum_up(self._rows(), dead_lettered, confirmed_seq)
        removed = self._removed.sum_up(dead_lettered)
        return Comparison(
            in_postgres=found.rows,
            in_loki=found.in_sink,
            dead_lettered=found.dead_lettered,
            waiting=found.waiting,
            missing=found.missing,
            twice=removed.twice + found.twice,
            different=ranges_of(sorted(self._different)),
            unknown=ranges_of(sorted(set(self._unknown))),
            unnumbered=self._unnumbered,
            lost=self._lost,
            removed=removed,
        )

    def _is_of(self, place: int, seq: int) -> bool:
        return place < len(self._seqs) and self._seqs[place] == seq

    def _rows(self) -> Iterator[tuple[int, int, int]]:
        """Yield each row with the fewest and the most copies that Loki has of one of its parts."""
        begin = 0
        while begin < len(self._seqs):
            end = begin + 1
            while end < len(self._seqs) and self._seqs[end] == self._seqs[begin]:
                end += 1
            copies = self._copies[begin:end]
            yield self._seqs[begin], min(copies), max(copies)
            begin = end


def _digest(ts_ns: int, log_type: str, text: str) -> int:
    # Loki may give back what is no Unicode; it is different then, not an error.
    said = f"{ts_ns} {log_type} {text}".encode(errors="surrogatepass")
    return int.from_bytes(blake2b(said, digest_size=8).digest())
