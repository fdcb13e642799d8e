"""Baseline of the drain: plain COPY of the rows that the drain has stored."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import text

from trainwire.schemas.tables.kinds import ROW_KINDS
from trainwire.workers.resources import Resources

_COLUMNS = ", ".join(ROW_KINDS["logs"].columns)


def read_rows(resources: Resources, per_batch: int, limit: int) -> list[bytes]:
    """Return the stored log lines as binary COPY data, one item per batch of `per_batch` rows."""
    batches = []
    rows_between = f"SELECT {_COLUMNS} FROM training_logs WHERE seq BETWEEN {{}} AND {{}}"
    query = f"COPY ({rows_between} ORDER BY seq) TO STDOUT WITH (FORMAT BINARY)"
    with resources.engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        for first in range(1, limit + 1, per_batch):
            with driver.cursor() as cursor, cursor.copy(query.format(first, first + per_batch - 1)) as copy:
                batches.append(b"".join(copy))
    return batches


def plain_copy(resources: Resources, batches: list[bytes]) -> float:
    """Return the seconds of a binary COPY of these rows, with one commit per batch."""
    statement = f"COPY training_logs ({_COLUMNS}) FROM STDIN WITH (FORMAT BINARY)"
    began = time.perf_counter()
    for batch in batches:
        with resources.engine.begin() as connection:
            driver: Any = connection.connection.driver_connection
            with driver.cursor() as cursor, cursor.copy(statement) as copy:
                copy.write(batch)
    return time.perf_counter() - began


def rows_in(resources: Resources, table: str) -> int:
    """Return the number of rows in a table."""
    with resources.engine.connect() as connection:
        return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())
