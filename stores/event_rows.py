"""Rows of a job as events carry them (schemas/events.py): the same shape on every way to a reader."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, RowMapping, Select, select

from schemas.events import LogLine, Number
from schemas.non_finite import shown_float
from schemas.tables import training_logs

LIFTED: Final = ("loss", "accuracy", "learning_rate")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_L: Final = training_logs.c
_LOG_COLUMNS: Final = (_L.seq, _L.attempt, _L.logged_at, _L.logged_ns, _L.log_type, _L.content, _L.level, _L.rank)


def select_lines(job_id: int, *conditions: ColumnElement[bool]) -> Select[Any]:
    """Return the query for log rows of a job, in no order; `log_line` reads its rows."""
    return select(*_LOG_COLUMNS).where(_L.job_id == job_id, *conditions)


def log_line(row: Sequence[Any]) -> LogLine:
    """Return one row of `select_lines`."""
    seq, attempt, at, nanos, log_type, content, level, rank = row
    ts = ts_of(at) + nanos
    return LogLine(seq=seq, attempt=attempt, ts=ts, log_type=log_type, text=content, level=level, rank=rank)


def values_of(row: RowMapping) -> dict[str, Number]:
    """Return all values of a metric row, those with columns of their own first; 0.0 is a value."""
    lifted = {name: shown_float(row[name]) for name in LIFTED if row[name] is not None}
    return {**lifted, **(row["extra_metrics"] or {})}


def ts_of(at: datetime) -> int:
    """Return a time of Postgres in nanoseconds since 1970."""
    return (at - _EPOCH) // _MICROSECOND * 1000
