"""Reads and writes the metric series and blocks of one job (`trainwire.stores.rows.metric_blocks`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isnan
from typing import Any, Final

from sqlalchemy import Connection, text

from trainwire.stores.rows.metric_blocks import (
    BLOCK_POINTS,
    FAN_OUT,
    TAIL,
    Bounds,
    Points,
    Range,
    bounds_of,
    covering,
    encode_bounds,
    encode_rows,
    encode_values,
    joined,
    reduced,
)
from trainwire.stores.rows.metric_columns import Key
from trainwire.stores.rows.metric_frontier import TAIL_PLACE, BlockReader, Place

Block = tuple[Points, Bounds]
_TAIL_BOUNDS: Final = Bounds(0, 0, 0, Range(0, 0), Range(0, 0), Range(0, 0))
"""Bounds of the block with the newest points of a series.

Only `points` (the number of all points of the series) and `last_seq` are set.
"""


@dataclass(slots=True)
class Series:
    """A metric series, with the new points (`new`) to add to its stored points.

    `points` is the number of stored points, `tail` the newest of them, which do not fill a block yet.
    """

    number: int
    key: Key
    new: Points
    is_new: bool = False
    points: int = 0
    tail: Points = field(default_factory=lambda: joined([]))

    @property
    def all_points(self) -> int:
        """The number of stored and new points together."""
        return self.points + len(self.new.seqs)

    def earlier_blocks(self) -> Iterator[Place]:
        """Yield the places of stored blocks that a new block of lower resolution summarizes."""
        for level, begin, end in _levels(self.points, self.all_points):
            if end // FAN_OUT > begin // FAN_OUT:
                yield from (Place(level, number) for number in range(begin // FAN_OUT * FAN_OUT, begin))

    def blocks(self, earlier: Mapping[Place, Block]) -> dict[Place, Block]:
        """Return the new blocks by place, including the block with the newest points.

        `earlier` are the stored blocks that are summarized, with new blocks, in blocks of lower resolution.
        """
        points = joined([self.tail, self.new])
        first, full = self.points // BLOCK_POINTS, len(points.seqs) // BLOCK_POINTS
        found: dict[Place, Block] = {}
        for number in range(full):
            part = points.part(number * BLOCK_POINTS, (number + 1) * BLOCK_POINTS)
            found[Place(0, first + number)] = part, bounds_of(part)
        for level, begin, end in _levels(self.points, self.all_points):
            for number in range(begin // FAN_OUT, end // FAN_OUT):
                parent = Place(level + 1, number)
                # Retention may have removed the first ones.
                parts = [block for child in parent.children() if (block := found.get(child) or earlier.get(child))]
                found[parent] = (
                    reduced(joined([part for part, _ in parts])),
                    covering([b for _, b in parts]),
                )
        tail = points.part(full * BLOCK_POINTS, len(points.seqs))
        found[TAIL_PLACE] = tail, _TAIL_BOUNDS._replace(points=self.all_points, last_seq=points.seqs[-1])
        return found


class BlockTable:
    """The stored series and blocks of one job. Only the process with the job's lease may write them."""

    def __init__(self, connection: Connection, job_id: int) -> None:
        self._connection = connection
        self._reader = BlockReader(connection, job_id)
        self._job = {"job_id": job_id}
        self._rows: dict[bytes, bytes] = {}
        """Cache of encoded row columns: metrics that are logged together have the same."""

    def read_series(self) -> dict[Key, int]:
        """Return the numbers of the stored series by (name, attempt, rank)."""
        found = self._connection.execute(_SERIES, self._job)
        return {(name, attempt, rank): series for series, name, attempt, rank in found}

    def read_tails(self, series: Mapping[int, Series]) -> None:
        """Set `points` and `tail` of each series that is stored already."""
        places = [(number, TAIL_PLACE) for number, each in series.items() if not each.is_new]
        for number, _, bounds, points in self._reader.read(places):
            series[number].points, series[number].tail = bounds.points, points

    def read_earlier(self, series: Mapping[int, Series]) -> dict[int, dict[Place, Block]]:
        """Return the stored blocks that `Series.earlier_blocks` names, by series and place."""
        found: dict[int, dict[Place, Block]] = {number: {} for number in series}
        places = [(number, place) for number, each in series.items() for place in each.earlier_blocks()]
        for number, place, bounds, points in self._reader.read(places):
            found[number][place] = points, bounds
        return found

    def write(self, series: Sequence[Series], blocks: Mapping[int, Mapping[Place, Block]]) -> None:
        """Write new series and blocks, replace the blocks of newest points, and update extreme values."""
        found = [extremes_of(each.new.values) for each in series]
        names = {
            "series": [each.number for each in series],
            "names": [each.key[0] for each in series],
            "attempts": [each.key[1] for each in series],
            "ranks": [each.key[2] for each in series],
            "lows": [low for low, _ in found],
            "highs": [high for _, high in found],
        }
        self._connection.execute(_SAVE_SERIES, self._job | names)
        rows = [(number, *place, *block) for number, found in blocks.items() for place, block in found.items()]
        full = [row for row in rows if row[1] != TAIL]
        if full:
            self._copy(full)
        tails = [row for row in rows if row[1] == TAIL]
        values = {
            "series": [row[0] for row in tails],
            "seqs": [row[4].last_seq for row in tails],
            "bounds": [encode_bounds(row[4]) for row in tails],
            "points": [self._encode(row[3]) for row in tails],
        }
        self._connection.execute(_SAVE_TAILS, self._job | values)

    def _copy(self, rows: Sequence[tuple[int, int, int, Points, Bounds]]) -> None:
        driver: Any = self._connection.connection.driver_connection
        with driver.cursor() as cursor, cursor.copy(_COPY) as copy:
            copy.set_types(["bigint", "integer", "smallint", "integer", "bigint", "bytea", "bytea"])
            for series, level, number, points, bounds in rows:
                last_seq, encoded = bounds.last_seq, self._encode(points, is_shared=level == 0)
                place = (self._job["job_id"], series, level, number)
                copy.write_row((*place, last_seq, encode_bounds(bounds), encoded))

    def _encode(self, points: Points, *, is_shared: bool = True) -> bytes:
        if not is_shared:
            return encode_rows(points) + encode_values(points)
        key = points.seqs.tobytes()
        if (rows := self._rows.get(key)) is None:
            rows = self._rows[key] = encode_rows(points)
        return rows + encode_values(points)


def extremes_of(values: Sequence[float]) -> tuple[float, float]:
    """Return the lowest and the highest of `values` except NaN; (inf, -inf) if there is none."""
    numbers = values if not isnan(sum(values)) else [value for value in values if not isnan(value)]
    return min(numbers, default=inf), max(numbers, default=-inf)


def _levels(before: int, after: int) -> Iterator[tuple[int, int, int]]:
    """Yield (level, begin, end) when a series grows from `before` to `after` points.

    At each level, the blocks from number `begin` to below `end` are new.
    """
    level, begin, end = 0, before // BLOCK_POINTS, after // BLOCK_POINTS
    while end > begin:
        yield level, begin, end
        level, begin, end = level + 1, begin // FAN_OUT, end // FAN_OUT


_COPY: Final = (
    "COPY metric_blocks (job_id, series, level, number, last_seq, bounds, points) FROM STDIN WITH (FORMAT BINARY)"
)
_SERIES: Final = text("SELECT series, name, attempt, rank FROM metric_series WHERE job_id = :job_id")
_SAVE_SERIES: Final = text(
    "INSERT INTO metric_series AS known (job_id, series, attempt, rank, name, low, high) "
    "SELECT :job_id, series, attempt, rank, name, low, high "
    "FROM unnest(CAST(:series AS integer[]), CAST(:attempts AS integer[]), CAST(:ranks AS integer[]), "
    "CAST(:names AS text[]), CAST(:lows AS double precision[]), CAST(:highs AS double precision[])) "
    "AS saved(series, attempt, rank, name, low, high) ON CONFLICT (job_id, series) DO UPDATE "
    "SET low = least(known.low, excluded.low), high = greatest(known.high, excluded.high) "
    "WHERE excluded.low < known.low OR excluded.high > known.high"
)
_SAVE_TAILS: Final = text(
    f"INSERT INTO metric_blocks (job_id, series, level, number, last_seq, bounds, points) "  # noqa: S608 - our own number
    f"SELECT :job_id, series, {TAIL}, 0, seq, bounds, points FROM unnest(CAST(:series AS integer[]), "
    "CAST(:seqs AS bigint[]), CAST(:bounds AS bytea[]), CAST(:points AS bytea[])) "
    "AS tails(series, seq, bounds, points) "
    "ON CONFLICT (job_id, series, level, number) DO UPDATE SET last_seq = excluded.last_seq, "
    "bounds = excluded.bounds, points = excluded.points"
)
