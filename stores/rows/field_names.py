"""Collects the names in params, tags and metrics of the newest jobs, as suggestions for filters and columns."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, Text, cast, func, literal, select
from sqlalchemy.dialects.postgresql import JSONB

from trainwire.schemas.filters.job_fields import COLUMNS, TAGGED
from trainwire.schemas.tables import training_jobs
from trainwire.stores.postgres.jobs.job_values import shown_tags
from trainwire.stores.rows.sparklines import last_values

NEWEST_JOBS: Final = 200
NEWEST_ROWS: Final = 5
MAX_NAMES: Final = 1000
"""Largest number of names for each of params, tags and metrics."""


def field_names(connection: Connection) -> dict[str, list[str]]:
    """Return the names that filters, sort orders and columns of jobs can use.

    `jobs` has the fields of every job; `params`, `tags` and `metrics` have the names that occur in the newest
    `NEWEST_JOBS` jobs, sorted, at most `MAX_NAMES` each.
    """
    jobs = training_jobs.c
    newest = (
        select(jobs.id, jobs.params, cast(shown_tags, JSONB).label("tags"), jobs.final_metrics, jobs.best_metrics)
        .where(jobs.archived_at.is_(None))
        .order_by(jobs.created_at.desc(), jobs.id.desc())
        .limit(NEWEST_JOBS)
        .cte("newest")
    )
    found: dict[str, set[str]] = {"params": set(), "tags": set(), "metrics": set()}
    for kind, column in (
        ("params", newest.c.params),
        ("tags", newest.c.tags),
        ("metrics", newest.c.final_metrics),
        ("metrics", newest.c.best_metrics),
    ):
        names = func.jsonb_object_keys(func.coalesce(column, cast(literal("{}", Text), JSONB)))
        keys = select(names.label("name")).select_from(newest).distinct().limit(MAX_NAMES)
        found[kind].update(connection.execute(keys).scalars())
    ids = connection.execute(select(newest.c.id)).scalars().all()
    for values in last_values(connection, ids, NEWEST_ROWS).values():
        found["metrics"].update(values)
    return {"jobs": [*COLUMNS, *TAGGED]} | {kind: sorted(names)[:MAX_NAMES] for kind, names in found.items()}
