"""Reads all of a job's metrics as packed columns, which Postgres builds: no value becomes a Python object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import compress
from typing import Any, Final

from sqlalchemy import Connection, Engine, text

from trainwire.schemas.metric_blocks import INTEGERS, MetricBlock, Packed
from trainwire.schemas.tables import LIFTED

MOST_ROWS: Final = 50_000
FIRST_ROWS: Final = 16
"""Rows of the first block: a row may have 100,000 values."""
BLOCK_VALUES: Final = 250_000
"""About how many values a block has."""
MOST_EXPRESSIONS: Final = 16
"""Most names outside of the table's own columns that are read one by one; more are read by their rows' maps."""
_SENT: Final = {
    name: "timestamptz_send(logged_at)" if name == "time" else f"int{size}send({name})"
    for name, size in INTEGERS.items()
}
_REPEATABLE: Final = {"isolation_level": "REPEATABLE READ"}


def metric_blocks(
    engine: Engine, job_id: int, names: Sequence[str], after: int, last: int
) -> Iterator[MetricBlock]:
    """Yield the rows after `after` up to `last` that have one of these metrics; without `names`, all.

    No connection is held between two blocks.
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
    """The metrics to read of one job."""

    def __init__(self, job_id: int, names: list[str]) -> None:
        self._job_id = job_id
        self._names = names
        others = [name for name in names if name not in LIFTED]
        self._has_maps = not names or len(others) > MOST_EXPRESSIONS
        """Whether the other names are read from the rows' maps, all at once."""
        self._bounds: dict[str, Any] = {f"n{number}": name for number, name in enumerate(others)}
        self._values = {name: name for name in LIFTED if not names or name in names}
        if not self._has_maps:
            maps = {name: f"CAST(extra_metrics ->> :n{at} AS double precision)" for at, name in enumerate(others)}
            self._values |= maps
        present = [f"{value} IS NOT NULL" for value in self._values.values()]
        if self._has_maps and names:
            present.append("extra_metrics ?| CAST(:names AS text[])")
        self._condition = f" AND ({' OR '.join(present)})" if names else ""

    def read(self, connection: Connection, after: int, upto: int) -> MetricBlock:
        """Return the rows after `after` up to `upto`."""
        bounds = {"job_id": self._job_id, "after": after, "upto": upto, "names": self._names, **self._bounds}
        sent = [*_SENT.values(), *(f"float8send({value})" for value in self._values.values())]
        parts = [f"string_agg({value}, '')" for value in sent]
        *found, maps = self._row(connection, [*parts, "count(extra_metrics)"], bounds)
        values = [bytes(part or b"") for part in found]
        rows = len(values[0]) // INTEGERS["seq"]
        sizes = [*INTEGERS.values(), *(8 for _ in self._values)]
        is_partial = [0 < len(packed) < rows * size for packed, size in zip(values, sizes, strict=True)]
        seqs = self._seqs(connection, list(compress(sent, is_partial)), bounds)
        packed = [
            Packed(part, next(seqs) if some else None) for part, some in zip(values, is_partial, strict=True)
        ]
        metrics = dict(zip(self._values, packed[len(_SENT) :], strict=True))
        if self._has_maps and maps:
            metrics |= self._of_maps(connection, bounds)
        return MetricBlock(
            rows=rows, columns=_present(dict(zip(_SENT, packed, strict=False))), metrics=_present(metrics)
        )

    def _seqs(self, connection: Connection, sent: list[str], bounds: dict[str, Any]) -> Iterator[bytes]:
        """Yield for each expression the packed `seq` of the rows in which it is not null."""
        parts = [f"string_agg(int8send(seq), '') FILTER (WHERE {value} IS NOT NULL)" for value in sent]
        return map(bytes, self._row(connection, parts, bounds)) if parts else iter(())

    def _row(self, connection: Connection, parts: list[str], bounds: dict[str, Any]) -> Sequence[Any]:
        """Return aggregates over the rows in their order, which `string_agg` keeps."""
        query = (
            f"SELECT {', '.join(parts)} FROM (SELECT * FROM training_metrics WHERE job_id = :job_id "  # noqa: S608
            f"AND seq > :after AND seq <= :upto{self._condition} ORDER BY seq) AS rows"
        )
        return connection.execute(text(query), bounds).one()

    def _of_maps(self, connection: Connection, bounds: dict[str, Any]) -> dict[str, Packed]:
        named = " AND key = ANY(:names)" if self._names else ""
        query = text(
            "SELECT key, string_agg(float8send(CAST(value AS double precision)), '' ORDER BY seq), "  # noqa: S608
            "string_agg(int8send(seq), '' ORDER BY seq) FROM training_metrics, jsonb_each_text(extra_metrics) "
            f"WHERE job_id = :job_id AND seq > :after AND seq <= :upto AND value IS NOT NULL{named} GROUP BY key"
        )
        found = connection.execute(query, bounds)
        return {name: Packed(bytes(values), bytes(seqs)) for name, values, seqs in found}


def _present(columns: dict[str, Packed]) -> dict[str, Packed]:
    return {name: column for name, column in columns.items() if column.values}
