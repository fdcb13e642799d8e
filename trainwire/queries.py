"""The read side: what the commands show, from the tables."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, RowMapping, Select, func, select

from schemas.messages import shown_float
from schemas.tables import (
    source_positions,
    training_checkpoints,
    training_jobs,
    training_logs,
    training_metrics,
)
from trainwire.completeness import Position
from workers.jobs import FINISHED

LIFTED: Final = ("loss", "accuracy", "learning_rate")
LAST_METRIC_ROWS: Final = 100
"""The last values are gathered from so many rows: a loss every step, an accuracy every epoch."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One row of training_jobs."""

    id: int
    name: str | None
    status: str
    attempt: int
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    last_seen_at: datetime | None
    current_epoch: int | None
    total_epochs: int | None
    progress_percent: float | None
    final_accuracy: float | None
    final_metrics: dict[str, Any] | None
    best_metrics: dict[str, Any] | None
    best_epoch: int | None
    best_checkpoint_path: str | None
    last_checkpoint_path: str | None
    mlflow_run_id: str | None
    exit_code: int | None
    error_message: str | None
    quiet_since: datetime | None
    status_reason: str | None
    params: dict[str, Any] | None
    tags: dict[str, Any] | None
    last_log_seq: int
    last_metric_seq: int
    last_checkpoint_seq: int

    @property
    def is_finished(self) -> bool:
        """Tell whether the current attempt has ended."""
        return self.status in FINISHED

    @property
    def rows(self) -> dict[str, int]:
        """How many rows of each kind the job has had."""
        counts = (self.last_log_seq, self.last_metric_seq, self.last_checkpoint_seq)
        return dict(zip(("logs", "metrics", "checkpoints"), counts, strict=True))


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


class MetricRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row of training_metrics, the lifted values beside the others; non-finite numbers by their names."""

    seq: int
    attempt: int
    rank: int | None
    epoch: int | None
    step: int | None
    logged_at: datetime
    checkpoint_path: str | None
    values: dict[str, float | str]


def find_jobs(connection: Connection, *, status: str | None = None, limit: int = 50) -> list[Job]:
    """Return the newest jobs, the newest first."""
    wanted = select(*columns_of(Job, training_jobs)).order_by(
        training_jobs.c.created_at.desc(), training_jobs.c.id.desc()
    )
    if status is not None:
        wanted = wanted.where(training_jobs.c.status == status)
    return [Job(**row) for row in connection.execute(wanted.limit(limit)).mappings()]


def find_job(connection: Connection, job_id: int) -> Job | None:
    """Return one job, None where no message of it has been stored."""
    wanted = select(*columns_of(Job, training_jobs)).where(training_jobs.c.id == job_id)
    row = connection.execute(wanted).mappings().one_or_none()
    return None if row is None else Job(**row)


def next_job_id(connection: Connection) -> int:
    """Return the first number after all jobs that exist."""
    return int(connection.execute(select(func.coalesce(func.max(training_jobs.c.id), 0) + 1)).scalar_one())


def find_positions(connection: Connection, job_id: int) -> list[Position]:
    """Return how far each source of a job has come with each kind."""
    table = source_positions
    columns = (table.c.source, table.c.kind, table.c.attempt, table.c.last_seq, table.c.missing)
    wanted = select(*columns, table.c.dead_lettered, table.c.produced, table.c.dropped).where(
        table.c.job_id == job_id
    )
    return [
        Position(**{**row, "missing": tuple((first, last) for first, last in row["missing"])})
        for row in connection.execute(wanted).mappings()
    ]


def newest_logs(connection: Connection, wanted: LogFilter, limit: int) -> list[LogLine]:
    """Return the last `limit` matching lines, oldest first."""
    newest = _logs(wanted).order_by(training_logs.c.seq.desc()).limit(limit)
    return [LogLine(**row) for row in reversed(connection.execute(newest).mappings().all())]


def logs_after(connection: Connection, wanted: LogFilter, seq: int, limit: int) -> list[LogLine]:
    """Return the first `limit` matching lines after `seq`, oldest first."""
    after = _logs(wanted).where(training_logs.c.seq > seq).order_by(training_logs.c.seq).limit(limit)
    return [LogLine(**row) for row in connection.execute(after).mappings()]


def newest_metrics(connection: Connection, job_id: int, limit: int) -> list[MetricRow]:
    """Return the last `limit` points of a job, oldest first."""
    table = training_metrics
    newest = select(table).where(table.c.job_id == job_id).order_by(table.c.seq.desc()).limit(limit)
    return [_metric_row(row) for row in reversed(connection.execute(newest).mappings().all())]


def last_metrics(connection: Connection, job_id: int) -> dict[str, float | str]:
    """Return the newest value of each metric name among the last points."""
    values: dict[str, float | str] = {}
    for row in newest_metrics(connection, job_id, LAST_METRIC_ROWS):
        values.update(row.values)
    return values


def last_checkpoint(connection: Connection, job_id: int) -> str | None:
    """Return the URI of the newest checkpoint row."""
    table = training_checkpoints
    newest = select(table.c.uri).where(table.c.job_id == job_id).order_by(table.c.seq.desc()).limit(1)
    return connection.execute(newest).scalar_one_or_none()


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


def _metric_row(row: RowMapping) -> MetricRow:
    lifted = {name: shown_float(row[name]) for name in LIFTED if row[name] is not None}
    return MetricRow(
        values=lifted | (row["extra_metrics"] or {}),
        **{name: row[name] for name in MetricRow.__struct_fields__ if name != "values"},
    )


def columns_of(struct: type[msgspec.Struct], table: Any) -> list[Any]:
    """Return the columns of `table` that fill `struct`."""
    return [table.c[name] for name in struct.__struct_fields__]
