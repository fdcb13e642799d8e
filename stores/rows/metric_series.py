"""A job's metrics as series of bounded length, downsampled in Postgres to the extremes of equal pieces."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Literal

import msgspec
from sqlalchemy import Connection, RowMapping, TextClause, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import BigInteger

from trainwire.schemas.non_finite import Number, shown_float
from trainwire.schemas.tables import LIFTED, LIFTED_SQL
from trainwire.schemas.times import to_ns

Key = tuple[str, int, int | None]
"""Name, attempt, rank."""
MOST_POINTS: Final = 400_000
"""Most points of all series of one answer."""
FEWEST_POINTS: Final = 4
_EXTREMES: Final = (
    "min(ARRAY[?, seq]) FILTER (WHERE ? <> 'NaN'), max(ARRAY[?, -seq]) FILTER (WHERE ? <> 'NaN'), "
    "min(seq) FILTER (WHERE ? = 'NaN'), min(seq) FILTER (WHERE ? IS NOT NULL), "
    "max(seq) FILTER (WHERE ? IS NOT NULL)"
)
"""For a piece of one metric: lowest and highest value with their `seq`, and the `seq` of its first NaN, first and
last value."""


XAxis = Literal["step", "time", "epoch"]
_X: Final[dict[XAxis, str]] = {
    "step": "step",
    "epoch": "epoch",
    "time": "extract(epoch FROM logged_at) * 1000000000",
}
"""SQL expression of each axis; `time` is in nanoseconds since 1970."""


class XRange(msgspec.Struct, frozen=True, kw_only=True):
    """A range of an axis, both ends included; None is no limit. Rows without a value on this axis are excluded."""

    x: XAxis
    first: float | None = None
    last: float | None = None


class SeriesFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on a job's rows: after `after`, up to `last`; None is no condition."""

    job_id: int
    names: Sequence[str]
    last: int
    after: int = 0
    attempt: int | None = None
    rank: int | None = None
    within: XRange | None = None


class SeriesValue(msgspec.Struct, frozen=True, kw_only=True):
    """One value of one metric; `ts` in nanoseconds since 1970."""

    seq: int
    ts: int
    value: Number
    step: int | None
    epoch: int | None


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of one attempt and rank."""

    attempt: int
    rank: int | None
    rows: int
    first_seq: int
    last_seq: int


def read_series(
    connection: Connection, wanted: SeriesFilter, points: int, of_all: int = MOST_POINTS
) -> tuple[dict[Key, list[SeriesValue]], bool]:
    """Return series of at most about `points` each and `of_all` together, and whether they are downsampled.

    A downsampled series has the lowest, the highest and the first NaN value of each piece, and its first and last
    value.
    """
    if not wanted.names:
        return {}, False
    groups = _groups(connection, wanted)
    most = max(FEWEST_POINTS, min(points, of_all // max(1, len(groups) * len(wanted.names))))
    if all(group.rows <= most for group in groups):
        return _all_points(connection, wanted), False
    return _points_at(connection, wanted, _extremes(connection, wanted, groups, most)), True


def _groups(connection: Connection, wanted: SeriesFilter) -> list[Group]:
    found = text(
        "SELECT attempt, rank, count(*) AS rows, min(seq) AS first_seq, max(seq) AS last_seq "  # noqa: S608 - our own conditions
        f"FROM training_metrics WHERE {_conditions(wanted)} GROUP BY attempt, rank"
    )
    return [Group(**row) for row in connection.execute(found, _bounds(wanted)).mappings()]


def _extremes(
    connection: Connection, wanted: SeriesFilter, groups: Sequence[Group], most: int
) -> dict[Key, set[int]]:
    """Return the `seq` of the rows to show, by metric and group."""
    names = {f"n{number}": name for number, name in enumerate(wanted.names)}
    cut = {
        "pieces": max(1, (most - 2) // 2),
        "attempts": [group.attempt for group in groups],
        "ranks": [_rank(group.rank) for group in groups],
        "firsts": [group.first_seq for group in groups],
        "spans": [group.last_seq - group.first_seq + 1 for group in groups],
    }
    pieces: dict[tuple[int, int | None], list[Sequence[Any]]] = defaultdict(list)
    for attempt, rank, _, *extremes in connection.execute(_query(wanted), _bounds(wanted) | names | cut):
        pieces[attempt, rank].append(extremes)
    return {
        (name, attempt, rank): _seqs([extremes[5 * number : 5 * number + 5] for extremes in found])
        for (attempt, rank), found in pieces.items()
        for number, name in enumerate(wanted.names)
    }


def _query(wanted: SeriesFilter) -> TextClause:
    """Return the query for the extremes of each piece; arrays compare by their first element, the value."""
    columns = ", ".join(f"{_value(number, name)} AS v{number}" for number, name in enumerate(wanted.names))
    extremes = ", ".join(_EXTREMES.replace("?", f"v{number}") for number in range(len(wanted.names)))
    return text(
        f"SELECT attempt, rank, piece, {extremes} FROM ("  # noqa: S608 - names are bound
        f"SELECT attempt, rank, seq, (seq - g_first) * :pieces / g_span AS piece, {columns} FROM training_metrics "
        "JOIN unnest(CAST(:attempts AS int[]), CAST(:ranks AS int[]), CAST(:firsts AS bigint[]), "
        "CAST(:spans AS bigint[])) AS groups(g_attempt, g_rank, g_first, g_span) "
        "ON g_attempt = attempt AND g_rank = coalesce(rank, -1) "
        f"WHERE {_conditions(wanted)} OFFSET 0) AS rows GROUP BY attempt, rank, piece ORDER BY piece"
    )


def _seqs(pieces: Sequence[Sequence[Any]]) -> set[int]:
    """Return the `seq` of one metric's extremes and of its first and last value."""
    seqs: set[int] = set()
    for lowest, highest, nan_seq, _, _ in pieces:
        if lowest is not None:
            seqs |= {int(lowest[1]), int(-highest[1])}
        if nan_seq is not None:
            seqs.add(nan_seq)
    firsts = [piece[3] for piece in pieces if piece[3] is not None]
    lasts = [piece[4] for piece in pieces if piece[4] is not None]
    return seqs | set(firsts[:1]) | set(lasts[-1:])


def _all_points(connection: Connection, wanted: SeriesFilter) -> dict[Key, list[SeriesValue]]:
    query = text(f"{_ROWS} WHERE {_conditions(wanted)} ORDER BY seq")
    return _series(connection.execute(query, _bounds(wanted)).mappings(), wanted.names)


def _points_at(
    connection: Connection, wanted: SeriesFilter, chosen: dict[Key, set[int]]
) -> dict[Key, list[SeriesValue]]:
    seqs = sorted(set[int]().union(*chosen.values()))
    query = text(f"{_ROWS} WHERE job_id = :job_id AND seq = ANY(:seqs) ORDER BY seq").bindparams(
        bindparam("seqs", type_=ARRAY(BigInteger))
    )
    rows = connection.execute(query, {"job_id": wanted.job_id, "seqs": seqs}).mappings()
    series = _series(rows, wanted.names)
    return {key: [point for point in points if point.seq in chosen[key]] for key, points in series.items()}


def _series(rows: Iterable[RowMapping], names: Sequence[str]) -> dict[Key, list[SeriesValue]]:
    series: dict[Key, list[SeriesValue]] = defaultdict(list)
    for row in rows:
        ts = to_ns(row["logged_at"])
        for name, value in _values(row, names):
            point = SeriesValue(seq=row["seq"], ts=ts, value=value, step=row["step"], epoch=row["epoch"])
            series[name, row["attempt"], row["rank"]].append(point)
    order = {name: number for number, name in enumerate(names)}
    return dict(sorted(series.items(), key=lambda item: (order[item[0][0]], item[0][1], _rank(item[0][2]))))


def _values(row: RowMapping, names: Sequence[str]) -> Iterator[tuple[str, Number]]:
    extra: dict[str, Any] = row["extra_metrics"] or {}
    for name in names:
        value = row[name] if name in LIFTED else extra.get(name)
        if value is not None:
            yield name, shown_float(value)


def _value(number: int, name: str) -> str:
    """Return the SQL expression of a metric; strings in `extra_metrics` are names such as NaN, which SQL casts."""
    return name if name in LIFTED else f"CAST(extra_metrics ->> :n{number} AS double precision)"


def _rank(rank: int | None) -> int:
    return -1 if rank is None else rank


def _conditions(wanted: SeriesFilter) -> str:
    conditions = ["job_id = :job_id", "seq > :after", "seq <= :last"]
    conditions += ["attempt = :attempt"] * (wanted.attempt is not None)
    conditions += ["rank = :rank"] * (wanted.rank is not None)
    if wanted.within is not None:
        x = _X[wanted.within.x]
        conditions += [f"{x} >= CAST(:x_first AS double precision)"] * (wanted.within.first is not None)
        conditions += [f"{x} <= CAST(:x_last AS double precision)"] * (wanted.within.last is not None)
    return " AND ".join(conditions)


def _bounds(wanted: SeriesFilter) -> dict[str, Any]:
    bounds: dict[str, Any] = {"job_id": wanted.job_id, "after": wanted.after, "last": wanted.last}
    if wanted.within is not None:
        bounds |= {"x_first": wanted.within.first, "x_last": wanted.within.last}
    return bounds | {"attempt": wanted.attempt, "rank": wanted.rank}


_ROWS: Final = (
    f"SELECT seq, attempt, rank, logged_at, step, epoch, {LIFTED_SQL}, extra_metrics FROM training_metrics"  # noqa: S608
)
