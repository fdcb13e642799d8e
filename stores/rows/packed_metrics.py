"""Reads all metrics of a job as packed columns that Postgres builds; no value becomes a Python object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import compress
from typing import Any, Final

from sqlalchemy import Connection, Engine, text

from trainwire.schemas.metric_download import INTEGERS, MetricBlock, Packed
from trainwire.schemas.tables import LIFTED

MOST_ROWS: Final = 50_000
FIRST_ROWS: Final = 16
"""Number of rows in the first block; it is small because a row may have 100,000 values."""
BLOCK_VALUES: Final = 250_000
"""Approximate number of values in a block."""
MOST_EXPRESSIONS: Final = 64
"""Largest number of metrics without a column of their own that are read with one SQL expression each.

If there are more, all entries of `extra_metrics` are expanded to rows instead.
"""
_SENT: Final = {
    name: "timestamptz_send(logged_at)" if name == "time" else f"int{size}send({name})"
    for name, size in INTEGERS.items()
}
_BLOCK: Final = "job_id = :job_id AND seq > :after AND seq <= :upto"
_NAMES: Final = (
    "SELECT DISTINCT name FROM training_metrics, jsonb_object_keys(extra_metrics) AS name "  # noqa: S608 - our own
    f"WHERE {_BLOCK} AND extra_metrics IS NOT NULL"
)
_VALUES: Final = (
    "SELECT name, string_agg(float8send(CAST(value AS double precision)), '' ORDER BY seq), "  # noqa: S608 - our own
    "string_agg(int8send(seq), '' ORDER BY seq) FROM training_metrics, jsonb_each_text(extra_metrics) "
    f"AS entries(name, value) WHERE {_BLOCK} AND value IS NOT NULL"
)
_REPEATABLE: Final = {"isolation_level": "REPEATABLE READ"}


def read_packed_metrics(
    engine: Engine, job_id: int, names: Sequence[str], after: int, last: int
) -> Iterator[MetricBlock]:
    """Yield blocks of the rows with `after` < `seq` <= `last` that have one of the metrics `names`.

    Without `names`, all rows are included. No Postgres connection is in use while the caller processes a block.
    """
    rows, wanted = FIRST_ROWS, _Wanted(job_id, list(dict.fromkeys(names)))
    while after < last:
        upto = min(last, after + rows)
        with engine.connect().execution_options(**_REPEATABLE) as connection:
            block = wanted.read(connection, after, upto)
        if block.rows:
            yield block
        values = sum(len(packed.values) // 8 for packed in block.metrics.values())
        rows = max(1, min(MOST_ROWS, (upto - after) * BLOCK_VALUES // max(1, values)))
        after = upto


class _Wanted:
    """Reads blocks of one job's metrics with SQL queries that are built once."""

    def __init__(self, job_id: int, names: list[str]) -> None:
        others = [name for name in names if name not in LIFTED]
        self._has_maps = not names or len(others) > MOST_EXPRESSIONS
        """Whether metrics without a column of their own are searched in the `extra_metrics` of each block."""
        self._own = {name: name for name in LIFTED if not names or name in names}
        if not self._has_maps:
            self._own |= _expressions(others)
        present = [f"{value} IS NOT NULL" for value in self._own.values()]
        if self._has_maps and names:
            present.append("extra_metrics ?| CAST(:names AS text[])")
        self._condition = f" AND ({' OR '.join(present)})" if names else ""
        self._bounds: dict[str, Any] = {"job_id": job_id, "names": names, **_bounds(others * (not self._has_maps))}

    def read(self, connection: Connection, after: int, upto: int) -> MetricBlock:
        """Return the block of the rows with `after` < `seq` <= `upto`."""
        bounds = self._bounds | {"after": after, "upto": upto}
        sent = [(text, INTEGERS[name]) for name, text in _SENT.items()] + _doubles(self._own)
        packed = self._packed(connection, sent, bounds)
        columns = dict(zip(_SENT, packed, strict=False))
        metrics = dict(zip(self._own, packed[len(_SENT) :], strict=True))
        if self._has_maps and columns["seq"].values:
            metrics |= self._of_maps(connection, bounds)
        rows = len(columns["seq"].values) // INTEGERS["seq"]
        return MetricBlock(rows=rows, columns=_present(columns), metrics=_present(metrics))

    def _packed(
        self, connection: Connection, sent: Sequence[tuple[str, int]], bounds: dict[str, Any]
    ) -> list[Packed]:
        """Return the values of SQL expressions over the rows of a block, each packed into bytes.

        `sent` has (expression, size of a value in bytes). If an expression is null in some rows, the `seq` of the
        other rows are returned with its values.
        """
        parts = [f"string_agg({text}, '')" for text, _ in sent]
        count, *found = self._row(connection, ["count(*)", *parts], bounds)
        values = [bytes(part or b"") for part in found]
        is_partial = [0 < len(part) < count * size for part, (_, size) in zip(values, sent, strict=True)]
        of_seq = [
            f"string_agg(int8send(seq), '') FILTER (WHERE {text} IS NOT NULL)"
            for text, _ in compress(sent, is_partial)
        ]
        seqs = map(bytes, self._row(connection, of_seq, bounds) if of_seq else ())
        return [Packed(part, next(seqs) if some else None) for part, some in zip(values, is_partial, strict=True)]

    def _row(self, connection: Connection, parts: list[str], bounds: dict[str, Any]) -> Sequence[Any]:
        """Return the values of the SQL aggregates `parts` over the rows of a block, in the order of `seq`."""
        query = (
            f"SELECT {', '.join(parts)} FROM (SELECT * FROM training_metrics WHERE {_BLOCK}"  # noqa: S608
            f"{self._condition} ORDER BY seq) AS rows"
        )
        return connection.execute(text(query), bounds).one()

    def _of_maps(self, connection: Connection, bounds: dict[str, Any]) -> dict[str, Packed]:
        """Return the packed values of the metrics in the JSONB column `extra_metrics`.

        A few metrics are read with one expression each, which is faster; many are read with one query for all.
        """
        of_names = " AND name = ANY(:names)" if bounds["names"] else ""
        names = connection.execute(text(_NAMES + of_names), bounds).scalars().all()
        if len(names) <= MOST_EXPRESSIONS:
            found = self._packed(connection, _doubles(_expressions(names)), bounds | _bounds(names))
            return dict(zip(names, found, strict=True))
        rows = connection.execute(text(f"{_VALUES}{of_names} GROUP BY name"), bounds)
        return {name: Packed(bytes(values), bytes(seqs)) for name, values, seqs in rows}


def _expressions(names: Sequence[str]) -> dict[str, str]:
    """Return name -> SQL expression for the value of a metric in `extra_metrics`, as double precision.

    Strings such as NaN are converted too.
    """
    return {name: f"CAST(extra_metrics ->> :n{at} AS double precision)" for at, name in enumerate(names)}


def _bounds(names: Sequence[str]) -> dict[str, str]:
    return {f"n{at}": name for at, name in enumerate(names)}


def _doubles(values: dict[str, str]) -> list[tuple[str, int]]:
    return [(f"float8send({value})", 8) for value in values.values()]


def _present(columns: dict[str, Packed]) -> dict[str, Packed]:
    return {name: column for name, column in columns.items() if column.values}
