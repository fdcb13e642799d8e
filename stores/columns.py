"""Rows of a table as structs."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Table


def columns_of(struct: type[msgspec.Struct], table: Table) -> list[ColumnElement[Any]]:
    """Return the columns of `table` that fill `struct`."""
    return [table.c[name] for name in struct.__struct_fields__]
