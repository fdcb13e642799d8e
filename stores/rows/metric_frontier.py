"""Reads the blocks of metric series for a chart: the coarsest blocks that have enough points.

Blocks that lie only partly in the requested range are replaced by the finer blocks below them, down to level 0,
whose points are then filtered one by one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Final, Literal, NamedTuple

from sqlalchemy import Connection, text

from trainwire.stores.rows.metric_blocks import (
    ABSENT,
    BLOCK_POINTS,
    FAN_OUT,
    TAIL,
    Bounds,
    Points,
    PointsDecoder,
    Range,
    decode_bounds,
    joined,
)

_DOUBLINGS: Final = FAN_OUT.bit_length() - 1
MOST_PARTIAL: Final = 64
"""Largest number of blocks of a series that lie partly in a range and are replaced by finer blocks.

There are more only if steps are in random order. The points of these blocks are then filtered at their own level.
"""
Share = Literal["none", "part", "all"]
_Axis = Literal["step", "time", "epoch"]
_COLUMNS: Final[dict[_Axis, int]] = {"step": 1, "time": 2, "epoch": 3}
"""Axis -> index of its column in `Points`; the index of its range in `Bounds` is greater by 2."""
_BLOCKS_AT: Final = (
    "SELECT series, level, number, {columns} FROM unnest(CAST(:series AS integer[]), CAST(:levels AS smallint[]), "
    "CAST(:numbers AS integer[])) AS wanted(series, level, number) CROSS JOIN LATERAL (SELECT bounds, points "
    "FROM metric_blocks AS found WHERE found.job_id = :job_id AND found.series = wanted.series "
    "AND found.level = wanted.level AND found.number = wanted.number LIMIT 1) AS blocks"
)
"""Query that reads each block by the primary key; with old statistics, a plain join would scan the whole job."""


class Place(NamedTuple):
    """The level and the number of a block within its series."""

    level: int
    number: int

    @property
    def first_point(self) -> int:
        """The number of the level-0 block where this block begins."""
        return self.number << _DOUBLINGS * self.level

    def children(self) -> list[Place]:
        """Return the blocks of the level below that this block was made of."""
        first = self.number * FAN_OUT
        return [Place(self.level - 1, number) for number in range(first, first + FAN_OUT)]


TAIL_PLACE: Final = Place(TAIL, 0)


@dataclass(frozen=True, slots=True)
class PointFilter:
    """Selects points with `after` < `seq` <= `last` whose value on `axis` is from `low` to `high`.

    Both limits are inclusive, and None is no limit. If `axis` is None, only `seq` counts.
    """

    after: int
    last: int
    axis: _Axis | None = None
    low: float | None = None
    high: float | None = None

    def share(self, bounds: Bounds) -> Share:
        """Return how many points of a block with these bounds are selected: none, all, or perhaps some of them."""
        if bounds.last_seq <= self.after or bounds.first_seq > self.last:
            return "none"
        is_all = bounds.first_seq > self.after and bounds.last_seq <= self.last
        if self.axis is None:
            return "all" if is_all else "part"
        along: Range = bounds[_COLUMNS[self.axis] + 2]  # type: ignore[assignment]
        if along.low > along.high or self._misses(along):
            return "none"
        is_all = is_all and not along.has_absent and self._has(along.low) and self._has(along.high)
        return "all" if is_all else "part"

    def chosen(self, points: Points) -> Points:
        """Return the points that are selected."""
        indexes: Iterable[int] = range(len(points.seqs))
        if points.seqs and not (points.seqs[0] > self.after and points.seqs[-1] <= self.last):
            indexes = [index for index in indexes if self.after < points.seqs[index] <= self.last]
        if self.axis is not None:
            column = points[_COLUMNS[self.axis]]
            indexes = [index for index in indexes if column[index] != ABSENT and self._has(column[index])]
        return points.at(indexes)

    def _has(self, number: int) -> bool:
        return (self.low is None or number >= self.low) and (self.high is None or number <= self.high)

    def _misses(self, along: Range) -> bool:
        return (self.low is not None and along.high < self.low) or (
            self.high is not None and along.low > self.high
        )


@dataclass(slots=True)
class SeriesPoints:
    """Points of one series; `is_reduced` is True if some are minima and maxima instead of all points."""

    points: Points
    is_reduced: bool


@dataclass(slots=True)
class _Frontier:
    """The blocks of one series that are to be read.

    The filter selects all points of the blocks in `whole`, and only some points of those in `partial`; those in
    `unchecked` are still to be compared with it. `tail` has the selected points after the last full block of
    level 0.
    """

    tail: Points
    unchecked: list[Place]
    whole: list[Place] = field(default_factory=list)
    partial: list[Place] = field(default_factory=list)

    def refine(self, fewest: int) -> bool:
        """Replace blocks by the blocks of the level below them, and return whether there were any.

        These are the blocks in `partial` above level 0, and the coarsest ones in `whole` if all of `whole` has
        fewer than `fewest` points. A very long `partial` is not refined further.
        """
        self.unchecked = []
        if len(self.partial) <= MOST_PARTIAL:
            self.unchecked = [child for place in self.partial if place.level for child in place.children()]
            self.partial = [place for place in self.partial if not place.level]
        top = max((place.level for place in self.whole), default=0)
        has_few = top > 0 and len(self.whole) * BLOCK_POINTS < fewest
        if has_few:
            finer = [child for place in self.whole if place.level == top for child in place.children()]
            self.whole = [place for place in self.whole if place.level < top] + finer
        return has_few or bool(self.unchecked)


def read_blocks(
    connection: Connection, job_id: int, series: Sequence[int], condition: PointFilter | None, fewest: int
) -> dict[int, SeriesPoints]:
    """Return the selected points of each series that has blocks, by series number; all points without `condition`.

    A series has at least `fewest` points, or all of its points if it has fewer. A longer series may be reduced to
    minima and maxima. If more than MOST_PARTIAL blocks lie partly in the range, it may have fewer points.
    """
    blocks = BlockReader(connection, job_id)
    fronts: dict[int, _Frontier] = {}
    for number, _, bounds, points in blocks.read([(each, TAIL_PLACE) for each in series]):
        roots = _roots(bounds.points // BLOCK_POINTS)
        if condition is None:
            fronts[number] = _Frontier(points, [], roots)
        else:
            fronts[number] = _Frontier(condition.chosen(points), roots)
    while True:
        if condition is not None:
            unchecked = {number: front.unchecked for number, front in fronts.items()}
            for number, place, share in blocks.shares(_pairs(unchecked), condition):
                if share == "all":
                    fronts[number].whole.append(place)
                elif share == "part":
                    fronts[number].partial.append(place)
        are_refined = [front.refine(fewest) for front in fronts.values()]
        if not any(are_refined):
            return _points_of(blocks, fronts, condition)


def _points_of(
    blocks: BlockReader, fronts: dict[int, _Frontier], condition: PointFilter | None
) -> dict[int, SeriesPoints]:
    parts: dict[int, list[tuple[int, Points]]] = defaultdict(list)
    are_partial = {(number, place) for number, front in fronts.items() for place in front.partial}
    places = _pairs({number: front.whole + front.partial for number, front in fronts.items()})
    for number, place, points in blocks.points(places):
        if condition is not None and (number, place) in are_partial:
            points = condition.chosen(points)  # noqa: PLW2901 - less than was read
        parts[number].append((place.first_point, points))
    return {
        number: SeriesPoints(
            joined([points for _, points in sorted(parts[number], key=itemgetter(0))] + [front.tail]),
            any(place.level for place in front.whole + front.partial),
        )
        for number, front in fronts.items()
    }


def _roots(full: int) -> list[Place]:
    """Return the smallest set of blocks that covers the first `full` blocks of level 0."""
    found, level = [], 0
    while full:
        found += [Place(level, number) for number in range(full // FAN_OUT * FAN_OUT, full)]
        level, full = level + 1, full // FAN_OUT
    return found


def _pairs(places: dict[int, list[Place]]) -> list[tuple[int, Place]]:
    return [(number, place) for number, found in places.items() for place in found]


class BlockReader:
    """Reads metric blocks of one job."""

    def __init__(self, connection: Connection, job_id: int) -> None:
        self._connection = connection
        self._job_id = job_id
        self._decode = PointsDecoder().decode

    def shares(
        self, places: Sequence[tuple[int, Place]], condition: PointFilter
    ) -> Iterator[tuple[int, Place, Share]]:
        """Yield (series, place, share of the points that are selected) for the requested blocks that exist."""
        known: dict[bytes, Share] = {}  # metrics of the same rows have equal bounds
        for number, *place, bounds in self._execute("bounds", places):
            if (share := known.get(bounds)) is None:
                share = known[bounds] = condition.share(decode_bounds(bounds))
            yield number, Place(*place), share

    def points(self, places: Sequence[tuple[int, Place]]) -> list[tuple[int, Place, Points]]:
        """Return (series, place, points) of the requested blocks that exist."""
        found = self._execute("points", places)
        return [(number, Place(*place), self._decode(points)) for number, *place, points in found]

    def read(self, places: Sequence[tuple[int, Place]]) -> list[tuple[int, Place, Bounds, Points]]:
        """Return (series, place, bounds, points) of the requested blocks that exist."""
        found = self._execute("bounds, points", places)
        return [(n, Place(*place), decode_bounds(one), self._decode(points)) for n, *place, one, points in found]

    def _execute(self, columns: str, places: Sequence[tuple[int, Place]]) -> Any:
        if not places:
            return []
        query = _BLOCKS_AT.format(columns=columns)
        wanted = {
            "job_id": self._job_id,
            "series": [number for number, _ in places],
            "levels": [place.level for _, place in places],
            "numbers": [place.number for _, place in places],
        }
        return self._connection.execute(text(query), wanted).all()
