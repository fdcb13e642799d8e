"""Metric rows of a job, as the commands show them."""

from __future__ import annotations

from datetime import datetime

import msgspec
from sqlalchemy import Connection, RowMapping, select

from trainwire.schemas.non_finite import Number
from trainwire.schemas.tables import training_metrics
from trainwire.stores.rows.event_rows import values_of


class MetricRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row of training_metrics, the lifted values beside the others; non-finite numbers by their names."""

    seq: int
    attempt: int
    rank: int | None
    epoch: int | None
    step: int | None
    logged_at: datetime
    checkpoint_path: str | None
    values: dict[str, Number]


def newest_metrics(connection: Connection, job_id: int, limit: int) -> list[MetricRow]:
    """Return the last `limit` points of a job, oldest first."""
    table = training_metrics
    newest = select(table).where(table.c.job_id == job_id).order_by(table.c.seq.desc()).limit(limit)
    return [_metric_row(row) for row in reversed(connection.execute(newest).mappings().all())]


def _metric_row(row: RowMapping) -> MetricRow:
    return MetricRow(
        values=values_of(row),
        **{name: row[name] for name in MetricRow.__struct_fields__ if name != "values"},
    )
