"""The comparison of what Loki has with what Postgres has, line by line."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from stores.completeness import shown_ranges
from stores.loki import part_of, seq_of
from stores.loki_query import LokiLine
from workers.sinks.log_rows import LogRow
from workers.sinks.loki_lines import entries_of

MANY: Final = 255

Ranges = tuple[tuple[int, int], ...]


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

    @property
    def is_verified(self) -> bool:
        """Tell whether nothing differs; what waits for its delivery is no difference."""
        return not (self.missing or self.twice or self.different or self.strangers)

    @property
    def strangers(self) -> int:
        """How many lines Loki has that Postgres does not have."""
        return count(self.unknown) + self.unnumbered

    @property
    def line(self) -> str:
        """The whole comparison in one line."""
        heading, equals = ("verified" if self.is_verified else "differs"), ("≠" if self.missing else "=")
        strangers = f", {self.strangers:,} not in Postgres" if self.strangers else ""
        return (
            f"{heading}: {self.in_postgres:,} lines in Postgres {equals} {self.in_loki:,} in Loki + "
            f"{self.dead_lettered:,} dead-lettered + {self.waiting:,} waiting; {count(self.missing):,} missing, "
            f"{count(self.twice):,} twice, {count(self.different):,} different{strangers}"
        )

    @property
    def differences(self) -> list[str]:
        """One line for each kind of difference, with the numbers of the lines."""
        named = (
            ("missing in Loki", self.missing),
            ("twice in Loki", self.twice),
            ("different in Loki", self.different),
            ("in Loki, not in Postgres", self.unknown),
        )
        lines = [f"{name}: {shown_ranges(ranges)}" for name, ranges in named if ranges]
        return [*lines, f"in Loki without a number: {self.unnumbered:,}"] if self.unnumbered else lines


def compare(
    rows: Iterable[LogRow], lines: Iterable[LokiLine], *, confirmed_seq: int, dead_lettered: Collection[int]
) -> Comparison:
    """Compare rows, which come by `seq`, with Loki's lines, which come in any order.

    Rows after `confirmed_seq` that Loki does not have are waiting. 17 bytes are kept of a row, none of its text.
    """
    ledger = _Ledger()
    for row in rows:
        ledger.expect(row)
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

    def expect(self, row: LogRow) -> None:
        """Enter what Loki must have of a row."""
        for _, text, _ in entries_of(row):
            self._seqs.append(row.seq)
            self._digests.append(_digest(int(row.ts_ns), row.log_type, text))
            self._copies.append(0)

    def check(self, line: LokiLine) -> None:
        """Tick off what Loki has."""
        seq = seq_of(line)
        if seq is None:
            self._unnumbered += 1
            return
        first = bisect_left(self._seqs, seq)
        place = first + part_of(line) - 1
        if not self._is_of(first, seq):
            self._unknown.append(seq)
        elif not self._is_of(place, seq):
            self._different.add(seq)
        else:
            self._copies[place] = min(self._copies[place] + 1, MANY)
            if _digest(line.ts_ns, line.label("log_type") or "", line.line) != self._digests[place]:
                self._different.add(seq)

    def sum_up(self, confirmed_seq: int, dead_lettered: Collection[int]) -> Comparison:
        """Say where each row is."""
        rows = in_loki = dead = waiting = 0
        missing, twice = array("Q"), array("Q")
        for seq, fewest, most in self._rows():
            rows += 1
            if most > 1:
                twice.append(seq)
            if fewest:
                in_loki += 1
            elif seq in dead_lettered:
                dead += 1
            elif seq > confirmed_seq:
                waiting += 1
            else:
                missing.append(seq)
        return Comparison(
            in_postgres=rows,
            in_loki=in_loki,
            dead_lettered=dead,
            waiting=waiting,
            missing=ranges_of(missing),
            twice=ranges_of(twice),
            different=ranges_of(sorted(self._different)),
            unknown=ranges_of(sorted(set(self._unknown))),
            unnumbered=self._unnumbered,
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


def _digest(ts_ns: int, log_type: str, text: str) -> int:
    # Loki may give back what is no Unicode; it is different then, not an error.
    said = f"{ts_ns} {log_type} {text}".encode(errors="surrogatepass")
    return int.from_bytes(blake2b(said, digest_size=8).digest())
