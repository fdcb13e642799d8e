"""Positions of sources: which message numbers have arrived, are missing or are lost.

Positions are stored as rows in Postgres.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import attrgetter
from typing import Any, Final

import psycopg
from sqlalchemy import Connection, text

from trainwire.schemas.keys import Kind
from trainwire.schemas.tables import source_positions
from trainwire.schemas.times import to_datetime
from trainwire.schemas.wire.messages import Body, Checkpoint, Completion, Metrics
from trainwire.workers.drain.lifetimes import began_at
from trainwire.workers.drain.store import encoded, numbers_array, pipelined, recordset, text_array
from trainwire.workers.errors import Unavailable

MAX_RANGES: Final = 10_000
"""Maximum number of missing and lost ranges in one position, because each transaction writes its row.

Outages cause far fewer.
"""
LostRange = tuple[int, int, str]
"""A range of lost messages: (first number, last number, reason that the trainer stated), both included."""


@dataclass(slots=True)
class Position:
    """The message numbers of a source and kind: all up to `last_seq` arrived, except `missing` and `lost`.

    Both are lists of inclusive, ascending, disjoint ranges. `lost` contains numbers that the trainer has declared
    it cannot send again; such a message is stored if it arrives nevertheless.
    """

    last_seq: int = 0
    missing: list[tuple[int, int]] = field(default_factory=list)
    lost: list[LostRange] = field(default_factory=list)
    is_discarded: bool = False
    """Whether the job was deleted: its messages are acknowledged and not stored."""
    is_unknown_resume: bool = False
    """Whether the source resumes a job of which nothing else is stored."""
    only_advanced: bool = False
    """Whether only `last_seq` has grown since the position was loaded: without any ranges, gaps or resends."""
    missing_count: int = field(init=False)
    lost_count: int = field(init=False)
    """The number of missing, and of lost, messages; updated with the ranges because each entry may need it."""

    def __post_init__(self) -> None:
        """Compute `missing_count` and `lost_count`."""
        self.missing_count = _count(self.missing) if self.missing else 0
        self.lost_count = _count(self.lost) if self.lost else 0

    def would_scatter(self, first: int, last: int, *, lost: bool = False) -> bool:
        """Return whether recording the numbers `first` to `last` would result in more than `MAX_RANGES` ranges.

        The numbers would be recorded as lost if `lost` is True, else as arrived.
        """
        if len(self.missing) + len(self.lost) < MAX_RANGES:
            return False
        if last > self.last_seq:
            return lost or first > self.last_seq + 1
        if not lost:
            return any(_is_inside(ranges, first, last) for ranges in (self.missing, self.lost))
        # A gap that is lost as a whole moves from one list to the other; a partly lost one becomes two ranges.
        start, end = _overlapping(self.missing, first, last)
        return start < end and (self.missing[start][0] < first or last < self.missing[end - 1][1])

    def accept(self, seq: int, last: int | None = None) -> bool:
        """Record that message `seq` arrived; return False if it had arrived before (a resend).

        With `last`, all messages up to this number arrived; `seq` must then be the next expected one.
        """
        if seq == self.last_seq + 1:
            self.last_seq = last or seq
            return True
        self.only_advanced = False
        if seq > self.last_seq:
            self._extend(seq - 1)
            self.last_seq = seq
            return True
        return self._fill(seq)

    def lose(self, first: int, last: int, reason: str) -> int:
        """Record the missing ones of the messages `first` to `last` as lost; return their number.

        Messages above `last_seq` are missing too; `last_seq` is then raised to `last`.
        """
        self.only_advanced = False
        self._extend(last)
        start, end = _overlapping(self.missing, first, last)
        if start == end:
            return 0
        gaps = self.missing[start:end]
        self.missing[start:end] = _outside((gaps[0][0], gaps[-1][1]), first, last)
        gone = [(max(first, a), min(last, b)) for a, b in gaps]
        for a, b in gone:
            self._add_lost(a, b, reason)
        count = sum(b - a + 1 for a, b in gone)
        self.missing_count -= count
        self.lost_count += count
        return count

    def expect(self, last: int) -> list[tuple[int, int]]:
        """Record that messages up to number `last` exist; return the ranges up to it that are missing."""
        self.only_advanced = False
        self._extend(last)
        return [(first, min(end, last)) for first, end in self.missing if first <= last]

    def reopen(self, seq: int) -> bool:
        """Mark message `seq` as missing again, so that a resend is stored; return False if it has not arrived."""
        missing, lost = _overlapping(self.missing, seq, seq), _overlapping(self.lost, seq, seq)
        if not 1 <= seq <= self.last_seq or missing[0] < missing[1] or lost[0] < lost[1]:
            return False
        self.only_advanced = False
        self.missing.insert(missing[0], (seq, seq))
        self.missing_count += 1
        return True

    @property
    def contiguous(self) -> int:
        """The highest number up to which no message is missing; the trainer may delete its messages up to it."""
        return self.missing[0][0] - 1 if self.missing else self.last_seq

    @property
    def received(self) -> int:
        """The number of messages that have arrived."""
        return self.last_seq - self.missing_count - self.lost_count

    def missing_text(self) -> str:
        """Return the missing ranges in the format that trainers read, such as `3-5,9-9`."""
        return ",".join(f"{first}-{last}" for first, last in self.missing)

    def _extend(self, last: int) -> None:
        """Record that messages up to number `last` exist: those after `last_seq` become missing."""
        if last > self.last_seq:
            self.missing.append((self.last_seq + 1, last))
            self.missing_count += last - self.last_seq
            self.last_seq = last

    def _fill(self, seq: int) -> bool:
        start, end = _overlapping(self.missing, seq, seq)
        if start < end:
            self.missing[start:end] = _outside(self.missing[start], seq, seq)
            self.missing_count -= 1
            return True
        start, end = _overlapping(self.lost, seq, seq)
        if start < end:
            first, last, reason = self.lost[start]
            self.lost[start:end] = [(a, b, reason) for a, b in _outside((first, last), seq, seq)]
            self.lost_count -= 1
            return True
        return False

    def _add_lost(self, first: int, last: int, reason: str) -> None:
        """Insert a range into `lost`, and merge it with adjacent ranges that have the same reason."""
        start = end = bisect_right(self.lost, first, key=_first)
        if start and self.lost[start - 1][1:] == (first - 1, reason):
            start -= 1
            first = self.lost[start][0]
        if end < len(self.lost) and (self.lost[end][0], self.lost[end][2]) == (last + 1, reason):
            last = self.lost[end][1]
            end += 1
        self.lost[start:end] = [(first, last, reason)]


SourceKey = tuple[int, str, Kind]
"""Identifies a row of `source_positions`: (job, source, kind)."""


@dataclass(slots=True)
class SourceRow:
    """One row of `source_positions`: the position of a source for one kind, and other facts about the source."""

    attempt: int
    position: Position
    dead_lettered: int = 0
    produced: int | None = None
    dropped: int | None = None
    rank: int | None = None
    world_size: int | None = None
    is_launcher: bool = False
    began_at: datetime | None = None
    ended_at: datetime | None = None
    saved: tuple[Any, ...] | None = field(default=None, init=False)
    """The values of the columns `_OTHERS` in Postgres; None if the row does not exist there yet."""

    @property
    def only_advanced(self) -> bool:
        """Whether this row differs from Postgres in `last_seq` only."""
        return self.position.only_advanced and _others(self) == self.saved

    def note_place(self, body: Body) -> None:
        """Copy rank, world size, start and end time and launcher from a message, if it contains them.

        World size, start time and launcher come from metrics and completions only, and the end time from a
        completion that the source itself sent.
        """
        if isinstance(body, Checkpoint):
            return
        if body.rank is not None:
            self.rank = body.rank
        if not isinstance(body, (Metrics, Completion)):
            return
        if isinstance(body, Completion) and body.of is None:
            self.ended_at = to_datetime(body.ts)
        is_first = isinstance(body, Metrics) and body.heartbeat_s is not None
        if is_first or body.world_size is not None:
            began_ns = began_at(body)
            self.world_size, self.is_launcher = body.world_size or self.world_size, bool(body.launcher)
            self.began_at = None if began_ns is None else to_datetime(began_ns)


def load_positions(connection: Connection, sources: Iterable[tuple[int, str]]) -> dict[SourceKey, SourceRow]:
    """Return the `source_positions` rows of the (job, source) pairs in `sources`, for all kinds."""
    with pipelined(connection) as driver:
        query = PositionQuery(driver, sources)
    return query.rows()


class PositionQuery:
    """The query of `load_positions`, which `driver` sends with others in one round trip (`store.pipelined`)."""

    def __init__(self, driver: psycopg.Connection[Any], sources: Iterable[tuple[int, str]]) -> None:
        pairs = sorted(set(sources))
        given = {
            "jobs": numbers_array(job_id for job_id, _ in pairs),
            "sources": text_array(source for _, source in pairs),
        }
        self._found = driver.execute(_LOAD, given)

    def rows(self) -> dict[SourceKey, SourceRow]:
        """Return the rows; called after the block of `pipelined`."""
        return {(row[0], row[1], row[2]): _source_row(*row[3:]) for row in self._found}


def save_positions(connection: Connection, changed: dict[SourceKey, SourceRow]) -> None:
    """Write the changed rows.

    The caller has locked their jobs, so the order of the writes does not matter. Raises `Unavailable` if a row of
    which only `last_seq` has changed was deleted meanwhile.
    """
    advanced = {key: row for key, row in changed.items() if row.only_advanced}
    if advanced:
        jobs, sources, kinds = zip(*advanced, strict=True)
        given = {
            "jobs": numbers_array(jobs),
            "sources": text_array(sources),
            "kinds": text_array(kinds),
            "last_seqs": numbers_array(row.position.last_seq for row in advanced.values()),
        }
        if connection.execute(_ADVANCE, given).rowcount != len(advanced):
            raise Unavailable("positions of sources were deleted by another process: try again")
    others = (_values(key, row) for key, row in changed.items() if key not in advanced)
    if len(advanced) < len(changed):
        connection.execute(_SAVE, {"rows": encoded(_COLUMNS, others)})


def _source_row(
    is_recent: bool,
    last_seq: int,
    missing: list[list[int]] | None,
    lost: list[tuple[int, int, str]] | None,
    *others: Any,
) -> SourceRow:
    """Return a `SourceRow` from the columns that `_LOAD` selects after job, source and kind."""
    if missing is None and lost is None:
        position = Position(last_seq, only_advanced=is_recent)
    else:
        gaps = [(first, last) for first, last in missing or ()]
        position = Position(last_seq, gaps, [(first, last, reason) for first, last, reason in lost or ()])
    row = SourceRow(others[0], position, *others[1:])
    row.saved = others
    return row


def _values(key: SourceKey, row: SourceRow) -> tuple[Any, ...]:
    position = row.position
    return (*key, position.last_seq, position.missing, position.lost, *_others(row))


_OTHERS: Final = (
    *("attempt", "dead_lettered", "produced", "dropped", "rank", "world_size", "is_launcher"),
    *("began_at", "ended_at"),
)
"""The columns of `source_positions` that are fields of `SourceRow` with the same name."""
_others: Final = attrgetter(*_OTHERS)
_COLUMNS: Final = ("job_id", "source", "kind", "last_seq", "missing", "lost", *_OTHERS)
_LOAD: Final = (
    "SELECT job_id, source, kind, "  # noqa: S608 - our own column names
    # So that at least once an hour the acknowledgement is written in full (`stream.ack_commands`).
    "updated_at >= date_trunc('hour', now()) AS is_recent, "
    f"last_seq, nullif(missing, '[]'), nullif(lost, '[]'), {', '.join(_OTHERS)} FROM source_positions "
    "JOIN unnest(CAST(%(jobs)s AS bigint[]), CAST(%(sources)s AS text[])) "
    "AS wanted(job_id, source) USING (job_id, source)"
)
_ADVANCE: Final = text(
    "UPDATE source_positions AS known SET last_seq = given.last_seq, updated_at = now() "
    "FROM unnest(CAST(:jobs AS bigint[]), CAST(:sources AS text[]), CAST(:kinds AS text[]), "
    "CAST(:last_seqs AS bigint[])) AS given(job_id, source, kind, last_seq) "
    "WHERE known.job_id = given.job_id AND known.source = given.source AND known.kind = given.kind"
)
_SAVE: Final = text(
    f"INSERT INTO source_positions ({', '.join(_COLUMNS)}) "  # noqa: S608 - our own column names
    f"SELECT {', '.join(_COLUMNS)} FROM {recordset(source_positions, _COLUMNS)} "
    "ON CONFLICT (job_id, source, kind) DO UPDATE SET "
    f"{', '.join(f'{name} = excluded.{name}' for name in _COLUMNS[3:])}, updated_at = now()"
)


def _first(numbers: tuple[Any, ...]) -> int:
    return int(numbers[0])


def _overlapping(ranges: Sequence[tuple[Any, ...]], first: int, last: int) -> tuple[int, int]:
    """Return (start, end), the slice of `ranges` that contains all ranges which overlap `first` to `last`."""
    end = bisect_right(ranges, last, key=_first)
    start = bisect_right(ranges, first, hi=end, key=_first)
    return (start - 1 if start and ranges[start - 1][1] >= first else start), end


def _is_inside(ranges: Sequence[tuple[Any, ...]], first: int, last: int) -> bool:
    """Return whether one of `ranges` contains `first` to `last`, and numbers below and above them."""
    start, end = _overlapping(ranges, first, last)
    return end - start == 1 and ranges[start][0] < first and last < ranges[start][1]


def _outside(gap: tuple[int, int], first: int, last: int) -> list[tuple[int, int]]:
    """Return the parts of the range `gap` that lie outside `first` to `last`."""
    return [part for part in ((gap[0], first - 1), (last + 1, gap[1])) if part[0] <= part[1]]


def _count(ranges: Sequence[tuple[Any, ...]]) -> int:
    return sum(each[1] - each[0] + 1 for each in ranges)
