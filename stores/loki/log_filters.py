"""Log rows of a job, as the commands show them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, Select, select

from trainwire.schemas.tables import training_logs
from trainwire.stores.postgres.columns import columns_of


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """One row of training_logs."""

    seq: int
    logged_at: datetime
    log_type: str
    level: str | None
    rank: int | None
    content: str


class LogFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which lines of a job are wanted; None is no condition."""

    job_id: int
    log_type: str | None = None
    text: str | None = None
    attempt: int | None = None


def newest_logs(connection: Connection, wanted: LogFilter, limit: int) -> list[LogLine]:
    """Return the last `limit` matching lines, oldest first."""
    newest = _logs(wanted).order_by(training_logs.c.seq.desc()).limit(limit)
    return [LogLine(**row) for row in reversed(connection.execute(newest).mappings().all())]


def logs_after(connection: Connection, wanted: LogFilter, seq: int, limit: int) -> list[LogLine]:
    """Return the first `limit` matching lines after `seq`, oldest first."""
    after = _logs(wanted).where(training_logs.c.seq > seq).order_by(training_logs.c.seq).limit(limit)
    return [LogLine(**row) for row in connection.execute(after).mappings()]


def _logs(wanted: LogFilter) -> Select[Any]:
    table = training_logs
    found = select(*columns_of(LogLine, table)).where(table.c.job_id == wanted.job_id)
    if wanted.log_type is not None:
        found = found.where(table.c.log_type == wanted.log_type)
    if wanted.attempt is not None:
        found = found.where(table.c.attempt == wanted.attempt)
    if wanted.text is not None:
        found = found.where(table.c.content.contains(wanted.text, autoescape=True))
    return found
