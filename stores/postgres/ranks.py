"""Which ranks of an attempt have sent nothing, though a rank of it stated how many there are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from trainwire.stores.postgres.completeness import Position

SHOWN_RANGES: Final = 10
_EARLIEST: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class AbsentRanks:
    """Ranks of one attempt that have not reported, as ranges (inclusive, ascending), of `world_size` ranks."""

    attempt: int
    world_size: int
    ranges: tuple[tuple[int, int], ...]

    def shown(self, newest_attempt: int) -> str:
        """Return them as people write them: `ranks 1-3 of 4`."""
        named = [f"{first:,}" if first == last else f"{first:,}-{last:,}" for first, last in self.ranges]
        rest = sum(last - first + 1 for first, last in self.ranges[SHOWN_RANGES:])
        more = f" and {rest:,} more" if rest else ""
        noun = "rank" if len(named) == 1 and "-" not in named[0] else "ranks"
        of_attempt = "" if self.attempt == newest_attempt else f" in attempt {self.attempt}"
        return f"{noun} {', '.join(named[:SHOWN_RANGES])}{more} of {self.world_size:,}{of_attempt}"


def absent_ranks(rows: Iterable[Position]) -> tuple[AbsentRanks, ...]:
    """Return the absent ranks of each attempt that has any, the first attempt first."""
    by_attempt: dict[int, list[Position]] = defaultdict(list)
    for row in rows:
        by_attempt[row.attempt].append(row)
    found = ((attempt, *_expected(by_attempt[attempt])) for attempt in sorted(by_attempt))
    absent = [AbsentRanks(attempt, size, tuple(_between(ranks, size))) for attempt, size, ranks in found]
    return tuple(ranks for ranks in absent if ranks.ranges)


def _expected(rows: Iterable[Position]) -> tuple[int, set[int]]:
    """Return how many ranks an attempt has, 0 where nobody stated that, and which of them have reported.

    The newest source of the attempt decides, for the world of an elastic training grows and shrinks; trainers go
    before launchers, which count machines. A source that stated another size counts for no rank of this world.
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


def _age(row: Position) -> tuple[datetime, str]:
    return row.began_at or _EARLIEST, row.source


def _between(ranks: set[int], size: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges from 0 to `size` - 1 in which there is none of `ranks`; never builds them."""
    first = 0
    for rank in [*sorted(rank for rank in ranks if 0 <= rank < size), size]:
        if rank > first:
            yield first, rank - 1
        first = rank + 1
