"""The metadata of the tables, and columns that many of them have."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import BigInteger, Column, DateTime, MetaData, func, text
from sqlalchemy.types import TypeEngine

metadata: Final = MetaData(
    naming_convention={"pk": "%(table_name)s_pkey", "ix": "%(table_name)s_%(column_0_N_name)s_idx"}
)


def at(name: str, *, required: bool = False) -> Column[object]:
    """Return a column with a time; it is NOT NULL if `required` is set."""
    return Column(name, DateTime(timezone=True), nullable=not required)


def created_at() -> Column[object]:
    """Return the column with the time at which Postgres stored the row."""
    return Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now())


def key(name: str, kind: type[TypeEngine[Any]], comment: str | None = None) -> Column[Any]:
    """Return a column of the primary key whose values Postgres does not generate."""
    return Column(name, kind, primary_key=True, autoincrement=False, comment=comment)


def count(name: str) -> Column[int]:
    """Return a BIGINT column that is NOT NULL and 0 by default."""
    return Column(name, BigInteger, nullable=False, server_default=text("0"))
