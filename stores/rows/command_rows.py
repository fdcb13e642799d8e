"""Reads log lines and metric points of a job for the commands of `trainwire`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Select, func, select

from trainwire.schemas.events import LogLine
from trainwire.schemas.non_finite import Number, shown_float
from trainwire.schemas.tables import LIFTED, training_logs, training_metrics
from trainwire.stores.rows.event_rows import log_line, select_lines
from trainwire.stores.rows.log_pages import LineFilter


def newest_logs(connection: Connection, wanted: LineFilter, limit: int) -> list[LogLine]:
    """Return the last lines that match `wanted`, at most `limit`, oldest first."""
    newest = _logs(wanted).order_by(training_logs.c.seq.desc()).limit(limit)
    return [log_line(row) for row in reversed(connection.execute(newest).all())]


def logs_after(connection: Connection, wanted: LineFilter, seq: int, limit: int) -> list[LogLine]:
    """Return the first lines after `seq` that match `wanted`, at most `limit`, oldest first."""
    after = _logs(wanted).where(training_logs.c.seq > seq).order_by(training_logs.c.seq).limit(limit)
    return [log_line(row) for row in connection.execute(after)]


def _logs(wanted: LineFilter) -> Select[Any]:
    return select_lines(wanted.job_id, *wanted.conditions)


class StoredPoint(msgspec.Struct, frozen=True, gc=False):
    """One row of training_metrics with all its values; NaN and infinities are replaced by their names."""

    seq: int
    attempt: int
    rank: int | None
    epoch: int | None
    step: int | None
    logged_at: datetime
    checkpoint_path: str | None
    values: dict[str, Number]


PAGE_BYTES: Final = 2 * 1024 * 1024
"""Largest stored size of the values in one page of `metrics_before`; a page has at least one point."""
_PLACE: Final = [name for name in StoredPoint.__struct_fields__ if name != "values"]
_POINT_COLUMNS: Final = [training_metrics.c[name] for name in (*_PLACE, *LIFTED, "extra_metrics")]


def newest_metrics(connection: Connection, job_id: int, limit: int) -> list[StoredPoint]:
    """Return the last points of a job, at most `limit`, oldest first."""
    newest = _points(job_id).order_by(training_metrics.c.seq.desc()).limit(limit)
    return [_stored_point(row) for row in reversed(connection.execute(newest).all())]


def metrics_before(connection: Connection, job_id: int, seq: int, limit: int) -> list[StoredPoint]:
    """Return the last `limit` points of a job before `seq`, oldest first; fewer if they exceed `PAGE_BYTES`."""
    newest = _points(job_id).where(training_metrics.c.seq < seq).order_by(training_metrics.c.seq.desc())
    rows = newest.limit(limit).subquery()
    size = func.coalesce(func.pg_column_size(rows.c.extra_metrics), 0)
    sized = select(*rows.c, (func.sum(size).over(order_by=rows.c.seq.desc()) - size).label("upto")).subquery()
    *columns, upto = sized.c
    found = connection.execute(select(*columns).where(upto <= PAGE_BYTES).order_by(sized.c.seq))
    return [_stored_point(row) for row in found]


def metrics_after(connection: Connection, job_id: int, seq: int, limit: int) -> list[StoredPoint]:
    """Return the first points of a job after `seq`, at most `limit`, oldest first."""
    after = _points(job_id).where(training_metrics.c.seq > seq).order_by(training_metrics.c.seq).limit(limit)
    return [_stored_point(row) for row in connection.execute(after)]


def _points(job_id: int) -> Select[Any]:
    return select(*_POINT_COLUMNS).where(training_metrics.c.job_id == job_id)


def _stored_point(row: Sequence[Any]) -> StoredPoint:
    *lifted, extra = row[len(_PLACE) :]
    values = {name: shown_float(value) for name, value in zip(LIFTED, lifted, strict=True) if value is not None}
    return StoredPoint(*(*row[: len(_PLACE)], {**values, **extra} if extra else values))
