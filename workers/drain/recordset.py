"""Many rows in one statement: as one JSON parameter that Postgres reads as a table.

A statement per row costs a round of planning and answering each; of ten thousand jobs that say a line each, it
was most of the drain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from sqlalchemy import Column, Table
from sqlalchemy.dialects import postgresql

from trainwire.schemas.non_finite import shown_float

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]


def recordset(table: Table, columns: Iterable[str], **others: str) -> str:
    """Return SQL that reads the parameter `:rows` as rows `said` of these columns of a table, and of `others`.

    These are named with their types, for what is said of a row beside its columns.
    """
    types = {name: sql_type(table.c[name]) for name in columns} | others
    described = ", ".join(f"{name} {type_}" for name, type_ in types.items())
    return f"jsonb_to_recordset(CAST(:rows AS jsonb)) AS said({described})"


def sql_type(column: Column[Any]) -> str:
    """Return the type of a column in Postgres' words."""
    return column.type.compile(_DIALECT)


def encoded(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the parameter `:rows`. A float that JSON cannot say goes by its name, which Postgres reads again.

    A value of a JSONB column is a `msgspec.Raw` that `trainwire.workers.drain.rows` has made fit for Postgres.
    """
    return msgspec.json.encode([{name: _shown(value) for name, value in row.items()} for row in rows]).decode()


def _shown(value: Any) -> Any:
    return shown_float(value) if isinstance(value, float) else value
