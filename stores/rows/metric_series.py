"""Reads a job's metrics as series of limited length, from the blocks of `trainwire.stores.rows.metric_blocks`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal

import msgspec
from sqlalchemy import Connection, text

from trainwire.schemas.tables import INDEXED_CHARS, ROLLUPS_CURSOR
from trainwire.stores.rows.metric_blocks import Points, equal_cuts, extremes, joined
from trainwire.stores.rows.metric_columns import Key, MetricColumns
from trainwire.stores.rows.metric_frontier import PointFilter, read_blocks
from trainwire.stores.rows.sparklines import spread

MOST_POINTS: Final = 400_000
"""Largest number of points of all series in one response."""
FEWEST_POINTS: Final = 4
MOST_ROWS: Final = 10_000
MOST_BYTES: Final = 8 * 1024 * 1024
"""Largest stored size of the rows without blocks that are read; MOST_ROWS is their largest number.

If there are more, a sample of the rows is read.
"""
_SAMPLED: Final = 20
"""Number of rows from which the average row size is estimated."""

XAxis = Literal["step", "time", "epoch"]


class XRange(msgspec.Struct, frozen=True, kw_only=True):
    """A range of an axis, both ends included; None is no limit. Rows without a value on the axis are excluded."""

    x: XAxis
    first: float | None = None
    last: float | None = None


class SeriesFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on a job's metric rows with `after` < `seq` <= `last`; None is no condition."""

    job_id: int
    names: Sequence[str]
    last: int
    after: int = 0
    attempt: int | None = None
    rank: int | None = None
    within: XRange | None = None


def read_series(
    connection: Connection, wanted: SeriesFilter, points: int, of_all: int = MOST_POINTS
) -> tuple[dict[Key, Points], bool]:
    """Return the metric series that match `wanted`, and whether some are downsampled.

    Each series has at most `points` points, and all together have at most `of_all`; but a series may always have
    FEWEST_POINTS, and NaN values may be added. A downsampled series has the minimum, maximum and first NaN of each
    section, and its first and last value. If more than MOST_ROWS or MOST_BYTES of rows have no blocks yet, only a
    sample of them is read. The connection must be in autocommit mode. If there is no such job, the result is
    empty.
    """
    if not wanted.names:
        return {}, False
    with _snapshot(connection):
        covered = connection.execute(_COVERED, {"job_id": wanted.job_id, "cursor": ROLLUPS_CURSOR}).one_or_none()
        if covered is None:
            return {}, False
        after = max(wanted.after, covered.removed)
        tail, is_sampled = _read_tail(connection, wanted, max(after, covered.through))
        known = _series_numbers(connection, wanted) if after < covered.through else {}
        most = max(FEWEST_POINTS, min(points, of_all // max(1, len(known.keys() | tail.keys()))))
        is_whole = not after and covered.through <= wanted.last and wanted.within is None
        condition = None if is_whole else _point_filter(wanted, after)
        found = read_blocks(connection, wanted.job_id, list(known.values()), condition, most * 3 // 2)
    series: dict[Key, Points] = {}
    is_downsampled = is_sampled
    for key in _in_order(wanted.names, known.keys() | tail.keys()):
        blocks = found.get(known.get(key, 0))
        parts = [] if blocks is None else [blocks.points]
        if key in tail:
            parts.append(tail[key] if condition is None else condition.chosen(tail[key]))
        all_points = joined(parts)
        is_downsampled |= blocks is not None and blocks.is_reduced
        if len(all_points.seqs) > most:
            is_downsampled = True
            cuts = equal_cuts(all_points.seqs, max(1, (most - 2) // 2))
            all_points = all_points.at(extremes(all_points.values, cuts))
        if all_points.seqs:
            series[key] = all_points
    return series, is_downsampled


@contextmanager
def _snapshot(connection: Connection) -> Iterator[None]:
    """Context manager: run the statements of the block in one read-only snapshot of Postgres.

    The cursor, the blocks up to it, and the rows after it are thus consistent.
    """
    connection.exec_driver_sql("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        yield
    finally:
        if not connection.invalidated:  # a lost connection has no transaction; its own error is raised
            connection.exec_driver_sql("ROLLBACK")


def _read_tail(connection: Connection, wanted: SeriesFilter, after: int) -> tuple[dict[Key, Points], bool]:
    """Return the points of rows with `seq` > `after`, by series, and whether they are only a sample.

    These rows have no blocks yet.
    """
    columns = MetricColumns(wanted.names)
    rows = max(0, wanted.last - after)
    bounds: dict[str, Any] = {"job_id": wanted.job_id, "after": after, "last": wanted.last}
    bounds |= {"attempt": wanted.attempt, "rank": wanted.rank}
    most, condition = _most_rows(connection, wanted.job_id, after, wanted.last), "seq > :after AND seq <= :last"
    if is_sample := rows > most:
        bounds["seqs"] = spread(after + 1, wanted.last, most)
        condition = "seq = ANY(:seqs)"
    condition += " AND attempt = :attempt" * (wanted.attempt is not None)
    condition += " AND rank = :rank" * (wanted.rank is not None)
    if rows:
        columns.read(connection, f"{condition} ORDER BY seq", bounds)
    return dict(columns.series()), is_sample


def _most_rows(connection: Connection, job_id: int, after: int, last: int) -> int:
    """Return how many of the rows with `after` < `seq` <= `last` may be read, within MOST_ROWS and MOST_BYTES.

    The size of a row is estimated from a sample of _SAMPLED rows, which may always be read.
    """
    if last - after <= _SAMPLED:
        return _SAMPLED
    sampled = {"job_id": job_id, "seqs": spread(after + 1, last, _SAMPLED)}
    size_bytes = connection.execute(_ROW_BYTES, sampled).scalar_one()
    return max(_SAMPLED, min(MOST_ROWS, int(MOST_BYTES / max(1, size_bytes))))


def _series_numbers(connection: Connection, wanted: SeriesFilter) -> dict[Key, int]:
    bounds = {
        "job_id": wanted.job_id,
        "names": list(dict.fromkeys(wanted.names)),
        "attempt": wanted.attempt,
        "rank": wanted.rank,
    }
    found = connection.execute(_SERIES, bounds)
    return {(name, attempt, rank): number for name, attempt, rank, number in found}


def _point_filter(wanted: SeriesFilter, after: int) -> PointFilter:
    if wanted.within is None:
        return PointFilter(after, wanted.last)
    within = wanted.within
    scale = 1000 if within.x == "time" else 1  # blocks have microseconds
    low = None if within.first is None else within.first / scale
    high = None if within.last is None else within.last / scale
    return PointFilter(after, wanted.last, within.x, low, high)


def _in_order(names: Sequence[str], keys: Any) -> list[Key]:
    order = {name: number for number, name in enumerate(names)}
    return sorted(keys, key=lambda key: (order[key[0]], key[1], -1 if key[2] is None else key[2]))


_COVERED: Final = text(
    "SELECT removed_metric_seq AS removed, coalesce(confirmed_seq, 0) AS through FROM training_jobs "
    "LEFT JOIN delivery_cursors ON sink = :cursor AND job_id = id WHERE id = :job_id"
)
_ROW_BYTES: Final = text(
    "SELECT CAST(coalesce(avg(pg_column_size(extra_metrics)), 0) + 50 AS double precision) FROM training_metrics "
    "WHERE job_id = :job_id AND seq = ANY(:seqs)"
)
_SERIES: Final = text(
    "SELECT name, attempt, rank, series FROM unnest(CAST(:names AS text[])) AS wanted(named) CROSS JOIN LATERAL ("  # noqa: S608 - our own number
    "SELECT name, attempt, rank, series FROM metric_series WHERE job_id = :job_id "
    f'AND "left"(name COLLATE "C", {INDEXED_CHARS}) = "left"(named COLLATE "C", {INDEXED_CHARS}) AND name = named '
    "AND attempt = coalesce(CAST(:attempt AS integer), attempt) "
    "AND (CAST(:rank AS integer) IS NULL OR rank = CAST(:rank AS integer)) OFFSET 0) AS found"
)
