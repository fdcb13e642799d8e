"""Reads the blocks of series for a chart: the coarsest ones with enough points, finer ones at the ends of a range.

Blocks that lie partly in the range are replaced by the blocks that they were made of, down to level 0, whose
points are then chosen one by one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
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
    Range,
    decode_bounds,
    decode_points,
    joined,
)

_DOUBLINGS: Final = FAN_OUT.bit_length() - 1
MOST_PARTIAL: Final = 64
"""Blocks of a series that may lie partly in a range and be replaced by finer ones.

Only steps in no order at all have more; then the extremes of these blocks are filtered instead of their points.
"""
_Axis = Literal["step", "time", "epoch"]
_COLUMNS: Final[dict[_Axis, int]] = {"step": 1, "time": 2, "epoch": 3}
"""Columns of `Points`; the range in `Bounds` has the same index plus 2."""
_BLOCKS_AT: Final = (
    "SELECT series, level, number, {columns} FROM unnest(CAST(:series AS integer[]), CAST(:levels AS smallint[]), "
    "CAST(:numbers AS integer[])) AS wanted(series, level, number) CROSS JOIN LATERAL (SELECT bounds, points "
    "FROM metric_blocks AS found WHERE found.job_id = :job_id AND found.series = wanted.series "
    "AND found.level = wanted.level AND found.number = wanted.number LIMIT 1) AS blocks"
)
"""Reads each block by the primary key; a plain join is planned as a scan of the job where statistics are old."""


class Place(NamedTuple):
    """A block of a series."""

    level: int
    number: int

    @property
    def first_point(self) -> int:
        """The index of its first point among those of level 0."""
        return self.number << _DOUBLINGS * self.level

    def children(self) -> list[Place]:
        """Return the blocks that it was made of."""
        first = self.number * FAN_OUT
        return [Place(self.level - 1, number) for number in range(first, first + FAN_OUT)]


TAIL_PLACE: Final = Place(TAIL, 0)


@dataclass(frozen=True, slots=True)
class PointFilter:
    """Chooses points: rows after `after`, up to `last`, with a value of the axis from `low` to `high`, if any."""

    after: int
    last: int
    axis: _Axis | None = None
    low: float | None = None
    high: float | None = None

    def share(self, bounds: Bounds) -> Literal["none", "part", "all"]:
        """Return how many of a block's points are chosen."""
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
        """Return the chosen ones of these points."""
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
    """Points of one series; `is_reduced`: extremes instead of all."""

    points: Points
    is_reduced: bool


@dataclass(slots=True)
class _Frontier:
    """The blocks to be read of one series. `whole` and `partial`: chosen completely, or in part."""

    tail: Points
    whole: list[Place] = field(default_factory=list)
    partial: list[Place] = field(default_factory=list)

    def refined(self, fewest: int) -> list[Place]:
        """Take out blocks to be replaced by finer ones, until there are at least `fewest` points; return them."""
        taken: list[Place] = []
        if len(self.partial) <= MOST_PARTIAL:
            taken = [place for place in self.partial if place.level]
            self.partial = [place for place in self.partial if not place.level]
        top = max((place.level for place in self.whole), default=0)
        if top and len(self.whole) * BLOCK_POINTS < fewest:
            taken += [place for place in self.whole if place.level == top]
            self.whole = [place for place in self.whole if place.level < top]
        return taken


def read_blocks(
    connection: Connection, job_id: int, series: Sequence[int], condition: PointFilter | None, fewest: int
) -> dict[int, SeriesPoints]:
    """Return chosen points of series by their numbers: at least `fewest` of each, extremes if there are more."""
    blocks = BlockReader(connection, job_id)
    fronts: dict[int, _Frontier] = {}
    wanted: dict[int, list[Place]] = {}
    for number, _, bounds, points in blocks.read([(each, TAIL_PLACE) for each in series]):
        fronts[number] = _Frontier(points if condition is None else condition.chosen(points))
        wanted[number] = _roots(bounds.points // BLOCK_POINTS)
    while any(wanted.values()):
        for number, places in wanted.items() if condition is None else ():
            fronts[number].whole += places
        if condition is not None:
            for number, place, bounds in blocks.bounds(_pairs(wanted)):
                match condition.share(bounds):
                    case "all":
                        fronts[number].whole.append(place)
                    case "part":
                        fronts[number].partial.append(place)
        taken = {number: front.refined(fewest) for number, front in fronts.items()}
        wanted = {
            number: [child for place in places for child in place.children()] for number, places in taken.items()
        }
    return _points_of(blocks, fronts, condition)


def _points_of(
    blocks: BlockReader, fronts: dict[int, _Frontier], condition: PointFilter | None
) -> dict[int, SeriesPoints]:
    parts: dict[int, list[tuple[int, Points]]] = defaultdict(list)
    are_partial = {(number, place) for number, front in fronts.items() for place in front.partial}
    places = _pairs({number: front.whole + front.partial for number, front in fronts.items()})
    for number, place, _, points in blocks.read(places):
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
    """Return the fewest blocks that cover so many blocks of level 0."""
    found, level = [], 0
    while full:
        found += [Place(level, number) for number in range(full // FAN_OUT * FAN_OUT, full)]
        level, full = level + 1, full // FAN_OUT
    return found


def _pairs(places: dict[int, list[Place]]) -> list[tuple[int, Place]]:
    return [(number, place) for number, found in places.items() for place in found]


class BlockReader:
    """Reads blocks of one job."""

    def __init__(self, connection: Connection, job_id: int) -> None:
        self._connection = connection
        self._job_id = job_id

    def bounds(self, places: Sequence[tuple[int, Place]]) -> list[tuple[int, Place, Bounds]]:
        """Return the bounds of those of these blocks that exist."""
        found = self._execute("bounds", places)
        return [(number, Place(*place), decode_bounds(bounds)) for number, *place, bounds in found]

    def read(self, places: Sequence[tuple[int, Place]]) -> list[tuple[int, Place, Bounds, Points]]:
        """Return the bounds and points of those of these blocks that exist."""
        found = self._execute("bounds, points", places)
        return [(n, Place(*place), decode_bounds(one), decode_points(points)) for n, *place, one, points in found]

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
        return self._connection.execute(text(query), wanted)
