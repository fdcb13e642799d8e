"""Compares the row numbers of a job's lines in Loki with those in Postgres, without their texts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import Connection, select, text

from trainwire.schemas.tables import dead_letters, training_jobs
from trainwire.stores.loki.http import LokiHttp
from trainwire.stores.loki.lines import lines_in_loki, without_newer
from trainwire.stores.loki.query import LokiLine
from trainwire.stores.postgres.completeness import shown_ranges
from trainwire.stores.postgres.jobs.job_lookup import removed_rows
from trainwire.workers.sinks.cursors import read_cursors
from trainwire.workers.sinks.ranges import Ranges, ranges_of

MANY: Final = 2


class Copies:
    """Counts the copies that Loki has of each line of a job, for the line numbers 1 to `last_seq`.

    `unknown` are the other numbers that Loki has, `unnumbered` is its count of lines without a number.
    """

    def __init__(self, last_seq: int, lines: Iterable[LokiLine]) -> None:
        self.complete = bytearray(last_seq + 1)
        """Number of complete copies of a line by `seq`, at most `MANY`. A long line may have several parts."""
        self.of_any_part = bytearray(last_seq + 1)
        """Number of copies by `seq` of that part of a line that has the most copies, at most `MANY`."""
        self.unnumbered = 0
        unknown = set()
        parts: dict[tuple[int, int], Counter[int]] = defaultdict(Counter)
        for line in lines:
            seq = line.seq
            if seq is None:
                self.unnumbered += 1
            elif not 1 <= seq <= last_seq:
                unknown.add(seq)
            elif line.parts > 1:
                parts[seq, line.parts][line.part] += 1
            else:
                self._count(seq, 1, 1)
        for (seq, number), copies in parts.items():
            self._count(seq, min(copies.values()) if len(copies) == number else 0, max(copies.values()))
        self.unknown = ranges_of(unknown)

    def _count(self, seq: int, complete: int, of_any_part: int) -> None:
        self.complete[seq] = min(self.complete[seq] + complete, MANY)
        self.of_any_part[seq] = min(self.of_any_part[seq] + of_any_part, MANY)


@dataclass
class LokiComparison:
    """The comparison of all lines that a job has ever had, by line number.

    Each line is in Loki, dead-lettered, waiting or missing. Independently, it is in Postgres, removed by
    retention, or lost. `twice` are lines with several copies in Loki; `unknown` are numbers in Loki that no line
    of the job has.
    """

    rows: int
    in_loki: int = 0
    dead_lettered: int = 0
    waiting: int = 0
    missing: Ranges = field(default_factory=Ranges)
    twice: Ranges = field(default_factory=Ranges)
    unknown: Ranges = field(default_factory=Ranges)
    unnumbered: int = 0
    """Number of lines in Loki that have no `seq`: trainwire has not delivered them."""
    in_postgres: int = 0
    removed: Ranges = field(default_factory=Ranges)
    lost: Ranges = field(default_factory=Ranges)

    @property
    def is_verified(self) -> bool:
        """Whether no line is missing, duplicated, unknown or lost.

        Lines that wait for their delivery or were removed by retention do not count as differences.
        """
        return not any((self.missing, self.twice, self.unknown, self.unnumbered, self.lost))

    @property
    def line(self) -> str:
        """A summary of the comparison in one line of text."""
        return (
            f"{'verified' if self.is_verified else 'differs'}: {self.rows:,} lines = {self.in_loki:,} in Loki + "
            f"{self.dead_lettered:,} dead-lettered + {self.waiting:,} waiting + {self.missing.total:,} missing; "
            f"{self.twice.total:,} twice, {self.unknown.total + self.unnumbered:,} unknown; "
            f"{self.in_postgres:,} in Postgres + {self.removed.total:,} removed by retention + "
            f"{self.lost.total:,} lost"
        )

    @property
    def differences(self) -> list[str]:
        """The differences: one line of text for each type of difference, with the numbers of the lines."""
        named = (
            ("missing in Loki", self.missing),
            ("twice in Loki", self.twice),
            ("in Loki, unknown to Postgres", self.unknown),
            ("lost from Postgres", self.lost),
        )
        lines = [f"{name}: {shown_ranges(ranges)}" for name, ranges in named if ranges]
        return [*lines, f"in Loki without a number: {self.unnumbered:,}"] if self.unnumbered else lines

    @property
    def document(self) -> dict[str, object]:
        """The comparison as a JSON document; each list of numbers is an object with `count` and `ranges`."""
        fields = {
            name: {"count": value.total, "ranges": value} if isinstance(value, Ranges) else value
            for name, value in vars(self).items()
        }
        return {"verified": self.is_verified, "line": self.line, **fields}


def verify_loki(connection: Connection, http: LokiHttp, job_id: int) -> LokiComparison:
    """Compare the lines of a job in Loki with its rows in Postgres.

    Raises `LokiUnavailable` if Loki does not answer.
    """
    # This order allows deliveries and retention meanwhile: lines before the cursor are in Loki when it is read
    # later, and rows that were removed before the rows are read are covered by `removed_seq`, read later.
    confirmed_seq = read_cursors(connection, "loki", [job_id])[job_id].confirmed_seq
    last_seq = _last_seq(connection, job_id)
    refused = select(dead_letters.c.seq).where(
        dead_letters.c.stream == "sink:loki", dead_letters.c.job_id == job_id
    )
    dead_lettered = set(connection.execute(refused).scalars())
    stored = stored_ranges(connection, job_id, last_seq)
    removed_seq = removed_rows(connection, job_id)["logs"]
    lines = without_newer(lines_in_loki(connection, http, job_id), last_seq, lambda: _last_seq(connection, job_id))
    return compare(
        stored,
        Copies(last_seq, lines),
        removed_seq=removed_seq,
        confirmed_seq=confirmed_seq,
        dead_lettered=dead_lettered,
    )


def compare(
    stored: Iterable[tuple[int, int]],
    copies: Copies,
    *,
    removed_seq: int,
    confirmed_seq: int,
    dead_lettered: Collection[int],
) -> LokiComparison:
    """Compare the row numbers in Postgres (`stored`, as ranges) with the copies in Loki.

    Rows up to `removed_seq` that are not stored were removed by retention. Of the rows that are not in Loki, those
    in `dead_lettered` count as dead-lettered, and stored ones after `confirmed_seq` as waiting.
    """
    found = LokiComparison(len(copies.complete) - 1, unknown=copies.unknown, unnumbered=copies.unnumbered)
    is_stored = bytearray(found.rows + 1)
    for first, last in stored:
        is_stored[first : last + 1] = b"\1" * (last + 1 - first)
    for seq in range(1, found.rows + 1):
        if copies.complete[seq]:
            found.in_loki += 1
        elif seq in dead_lettered:
            found.dead_lettered += 1
        elif is_stored[seq] and seq > confirmed_seq:
            found.waiting += 1
        else:
            found.missing.add(seq)
        if copies.of_any_part[seq] > 1:
            found.twice.add(seq)
        if is_stored[seq]:
            found.in_postgres += 1
        else:
            (found.removed if seq <= removed_seq else found.lost).add(seq)
    return found


def stored_ranges(connection: Connection, job_id: int, last_seq: int) -> list[tuple[int, int]]:
    """Return the numbers of a job's log rows in Postgres up to `last_seq`, as ranges (first, last)."""
    rows = connection.execute(_STORED, {"job_id": job_id, "last_seq": last_seq})
    return [(first, last) for first, last in rows]


def _last_seq(connection: Connection, job_id: int) -> int:
    last_seq = select(training_jobs.c.last_log_seq).where(training_jobs.c.id == job_id)
    return connection.execute(last_seq).scalar_one_or_none() or 0


# Consecutive numbers have the same difference to their row number (gaps and islands).
_STORED: Final = text(
    "SELECT min(seq), max(seq) FROM (SELECT seq, seq - row_number() OVER (ORDER BY seq) AS holes "
    "FROM training_logs WHERE job_id = :job_id AND seq <= :last_seq) AS numbered GROUP BY holes"
)
