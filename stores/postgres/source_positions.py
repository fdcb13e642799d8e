"""Reads the positions of a job's sources, and determines the ranks that have not sent any message."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import Connection, func, select

from trainwire.schemas.tables import dead_letters, source_positions

SHOWN_RANGES: Final = 10
_RECENT: Final = timedelta(minutes=1)
_CLOCK_SKEW: Final = timedelta(seconds=30)
"""Tolerated difference between the clocks of a trainer and of Postgres."""
_EARLIEST: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class SourcePosition:
    """One row of source_positions: how far the messages of one source and kind are stored."""

    source: str
    kind: str
    attempt: int
    last_seq: int
    missing: tuple[tuple[int, int], ...] = ()
    dead_lettered: int = 0
    produced: int | None = None
    dropped: int | None = None
    lost: tuple[tuple[int, int, str], ...] = ()
    """(first, last, reason) of each range of numbers that the source has declared lost."""
    rank: int | None = None
    world_size: int | None = None
    is_launcher: bool = False
    began_at: datetime | None = None
    """The start of the process, if it is the one that created its run and is no forked child."""
    ended_at: datetime | None = None
    """The time of the completion that the source itself sent."""
    updated_at: datetime | None = None
    """When the newest message was stored, by the clock of Postgres."""

    @property
    def made(self) -> int:
        """The highest known message number: the completion's count, or the last number that arrived if higher."""
        return max(self.produced or 0, self.last_seq)

    @property
    def gaps(self) -> tuple[tuple[int, int], ...]:
        """The ranges of message numbers that have not arrived, up to the highest known number (`made`)."""
        tail = ((self.last_seq + 1, self.made),) if self.made > self.last_seq else ()
        return _joined(self.missing + tail)

    @property
    def lost_ranges(self) -> tuple[tuple[int, int], ...]:
        """The ranges of numbers that the source has declared lost."""
        return tuple((first, last) for first, last, _ in self.lost)

    @property
    def has_completion(self) -> bool:
        """Whether a completion that the source itself sent is stored.

        If another process sent the completion in its place, `produced` is 0 for completions (docs/wire-format.md).
        """
        stored = self.last_seq - count_numbers(self.missing) - count_numbers(self.lost_ranges) - self.dead_lettered
        return self.kind == "completions" and stored > 0 and self.produced != 0


def find_unnumbered(connection: Connection, job_id: int) -> dict[str, int]:
    """Return source -> number of its dead letters that have no message number, for sources with such dead letters.

    Positions do not count these dead letters.
    """
    letters = dead_letters.c
    wanted = (
        select(letters.source, func.count().label("letters"))
        .where(letters.job_id == job_id, letters.source.is_not(None), letters.seq.is_(None))
        .group_by(letters.source)
        .order_by(letters.source)
    )
    return {row.source: row.letters for row in connection.execute(wanted)}


def find_positions(connection: Connection, job_id: int) -> list[SourcePosition]:
    """Return the positions of a job: one per source and kind."""
    columns = [source_positions.c[field.name] for field in fields(SourcePosition)]
    wanted = select(*columns).where(source_positions.c.job_id == job_id)
    return [
        SourcePosition(
            **row | {"missing": tuple(map(tuple, row["missing"])), "lost": tuple(map(tuple, row["lost"]))}
        )
        for row in map(dict, connection.execute(wanted).mappings())
    ]


@dataclass(frozen=True)
class AbsentRanks:
    """The ranks of one attempt that have not sent any message.

    `ranges` are inclusive and ascending; `world_size` is the number of all ranks of the attempt.
    """

    attempt: int
    world_size: int
    ranges: tuple[tuple[int, int], ...]

    def shown(self, newest_attempt: int) -> str:
        """Format the ranks as text, such as `ranks 1-3 of 4`.

        After SHOWN_RANGES ranges, further ranks are only counted. The text names the attempt, unless it is
        `newest_attempt`.
        """
        named = [f"{first:,}" if first == last else f"{first:,}-{last:,}" for first, last in self.ranges]
        rest = count_numbers(self.ranges[SHOWN_RANGES:])
        more = f" and {rest:,} more" if rest else ""
        noun = "rank" if len(named) == 1 and "-" not in named[0] else "ranks"
        of_attempt = "" if self.attempt == newest_attempt else f" in attempt {self.attempt}"
        return f"{noun} {', '.join(named[:SHOWN_RANGES])}{more} of {self.world_size:,}{of_attempt}"


def absent_ranks(rows: Iterable[SourcePosition]) -> tuple[AbsentRanks, ...]:
    """Return the absent ranks of each attempt that has some, in the order of attempts."""
    by_attempt: dict[int, list[SourcePosition]] = defaultdict(list)
    for row in rows:
        by_attempt[row.attempt].append(row)
    found = ((attempt, *_expected(by_attempt[attempt])) for attempt in sorted(by_attempt))
    absent = [AbsentRanks(attempt, size, tuple(_between(ranks, size))) for attempt, size, ranks in found]
    return tuple(ranks for ranks in absent if ranks.ranges)


def _expected(rows: Iterable[SourcePosition]) -> tuple[int, set[int]]:
    """Return the world size of an attempt (0 if no source reported one), and the ranks that have sent messages.

    The newest source determines the world size, because an elastic training may change it. Launchers report the
    number of machines, so their sources are used only if there are no others. Ranks of sources that reported
    another size are ignored.
    """
    rows = list(rows)
    statements = {row.source: row for row in rows if row.world_size is not None}
    by_trainers = [row for row in statements.values() if not row.is_launcher]
    newest = max(by_trainers or statements.values(), key=_age, default=None)
    if newest is None:
        return 0, set()
    size = newest.world_size or 0
    stated = {row.rank or 0 for row in statements.values() if row.world_size == size}
    return size, stated | {row.rank for row in rows if row.rank is not None and row.source not in statements}


@dataclass(frozen=True)
class SharedRank:
    """Trainers that were running at the same time as the same rank of one attempt."""

    attempt: int
    rank: int
    sources: tuple[str, ...]

    def shown(self, newest_attempt: int) -> str:
        """Format the rank as text, such as `2 as rank 0 (0-a1b2, 0-c3d4)`.

        The text names the attempt, unless it is `newest_attempt`.
        """
        of_attempt = "" if self.attempt == newest_attempt else f" in attempt {self.attempt}"
        return f"{len(self.sources)} as rank {self.rank}{of_attempt} ({', '.join(self.sources[:SHOWN_RANGES])})"


def shared_ranks(rows: Iterable[SourcePosition], now: datetime) -> tuple[SharedRank, ...]:
    """Return the ranks that several trainers had at the same time.

    Processes of one run, such as forked children, have one start time, and count as one trainer. A trainer that
    was killed, and one that was started in its place, did not run at the same time.
    """
    by_rank: dict[tuple[int, int], dict[datetime, list[SourcePosition]]] = defaultdict(lambda: defaultdict(list))
    sources: dict[str, list[SourcePosition]] = defaultdict(list)
    for row in rows:
        sources[row.source].append(row)
    for of_source in sources.values():
        first = next((row for row in of_source if row.began_at is not None and not row.is_launcher), None)
        if first is not None and first.began_at is not None:
            by_rank[first.attempt, first.rank or 0][first.began_at] += of_source
    found = []
    for (attempt, rank), by_start in sorted(by_rank.items()):
        together: set[datetime] = set()
        last_seen: tuple[datetime, datetime] | None = None
        """The latest time at which an earlier trainer was certainly running, and its start."""
        for start in sorted(by_start):
            if last_seen is not None and last_seen[0] > start:
                together |= {last_seen[1], start}
            seen_at = _last_seen(start, by_start[start], now)
            if seen_at is not None and (last_seen is None or seen_at > last_seen[0]):
                last_seen = seen_at, start
        if together:
            names = tuple(by_start[start][0].source for start in sorted(together))
            found.append(SharedRank(attempt, rank, names))
    return tuple(found)


def _last_seen(start: datetime, rows: Collection[SourcePosition], now: datetime) -> datetime | None:
    """Return the last time at which the trainer with these positions was certainly running; None if unknown.

    Without a completion of its own it may have been killed: then only messages of the last minute count, less the
    tolerance for clocks.
    """
    if ended := [row.ended_at for row in rows if row.ended_at is not None]:
        return max(ended)
    if any(row.produced is not None for row in rows):
        return None  # it was killed: another process sent its messages and counts
    newest = max((row.updated_at for row in rows if row.updated_at is not None), default=start)
    return newest - _CLOCK_SKEW if newest > now - _RECENT else None


def _age(row: SourcePosition) -> tuple[datetime, str]:
    return row.began_at or _EARLIEST, row.source


def _between(ranks: set[int], size: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of 0 to `size` - 1 that contain none of `ranks`, without using memory for each rank."""
    first = 0
    for rank in [*sorted(rank for rank in ranks if 0 <= rank < size), size]:
        if rank > first:
            yield first, rank - 1
        first = rank + 1


def count_numbers(ranges: Iterable[tuple[int, int]]) -> int:
    """Return how many numbers are in the ranges, whose ends are inclusive."""
    return sum(last - first + 1 for first, last in ranges)


def _joined(ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return tuple(joined)
