"""Selects the columns that fill a struct, and limits the size of large JSONB maps."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Table, literal_column
from sqlalchemy.dialects.postgresql import JSONB

from trainwire.stores.postgres.jobs.job_values import shown_name, shown_tags

MOST_LISTED_NAMES: Final = 20
MOST_SHOWN_NAMES: Final = 1000
"""Largest number of names that are read from the final or best metrics of one job.

MOST_LISTED_NAMES is the limit for each job in a list.
"""
RESULTS: Final = ("final_metrics", "best_metrics")
_MOST_LISTED_BYTES: Final = 64 * 1024
"""Stored size above which a map is omitted from lists, because Postgres would read all of it to return a part."""
_SMALL_BYTES: Final = 100


def columns_of(struct: type[msgspec.Struct], table: Table) -> list[ColumnElement[Any]]:
    """Return the columns of `table` that have the names of the fields of `struct`.

    The field `stop` is computed: it is the request to stop the attempt, from stop_requests.
    """
    return [_stop_of(table.name) if name == "stop" else table.c[name] for name in struct.__struct_fields__]


def _stop_of(table: str) -> ColumnElement[Any]:
    key = "id" if table == "training_jobs" else "job_id"
    request = (
        "(SELECT jsonb_build_object("  # noqa: S608 - our own names
        """'requested_at', to_char(requested_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), """
        "'requested_by', requested_by, 'reason', reason) "
        f"FROM stop_requests AS asked WHERE asked.job_id = {table}.{key} AND asked.attempt = {table}.attempt)"
    )
    return literal_column(request, JSONB).label("stop")


def job_columns(struct: type[msgspec.Struct], table: Table, most_names: int) -> list[ColumnElement[Any]]:
    """Return the columns of a `struct` for jobs; like `columns_of`, but with shortened maps of metrics.

    `final_metrics` and `best_metrics` have at most `most_names` names each (`first_names`). `name` and `tags` are
    the values that users have given to the job, otherwise those of its trainer.
    """
    return [_job_column(column, f"{table.name}.{column.name}", most_names) for column in columns_of(struct, table)]


def _job_column(column: ColumnElement[Any], full_name: str, most_names: int) -> ColumnElement[Any]:
    if column.name in RESULTS:
        return literal_column(first_names(full_name, most_names), JSONB).label(column.name)
    given = {"name": shown_name, "tags": shown_tags}.get(column.name)
    return column if given is None else given.label(column.name)


def first_names(column: str, most: int) -> str:
    """Return an SQL expression that reduces a JSONB object to its first `most` names, in Postgres' own order.

    An object of at most _SMALL_BYTES is not reduced. If `most` is at most MOST_LISTED_NAMES, as in lists of jobs,
    an object of more than _MOST_LISTED_BYTES becomes NULL.
    """
    is_listed = f"pg_column_size({column}) <= {_MOST_LISTED_BYTES}" if most <= MOST_LISTED_NAMES else "true"
    return (
        f"CASE WHEN pg_column_size({column}) <= {_SMALL_BYTES} THEN {column} "  # noqa: S608 - our own column names
        f"WHEN {is_listed} THEN (SELECT jsonb_object_agg(key, value) FROM "
        f"(SELECT key, value FROM jsonb_each({column}) LIMIT {most}) AS first) END"
    )
