"""Reads jobs and their attempts from Postgres."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, func, select, tuple_

from trainwire.schemas.kinds import ROW_KINDS
from trainwire.schemas.messages import FINISHED, Status
from trainwire.schemas.tables import deleted_jobs, training_attempts, training_jobs
from trainwire.stores.postgres.columns import MOST_LISTED_NAMES, MOST_SHOWN_NAMES, columns_of, job_columns


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One row of training_jobs; `final_metrics` and `best_metrics` have only some names (`job_columns`)."""

    id: int
    name: str | None
    status: Status
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
        """Whether the current attempt has ended."""
        return self.status in FINISHED

    @property
    def rows(self) -> dict[str, int]:
        """Number of rows of each kind that the job has ever had."""
        return {kind: getattr(self, storage.last_seq) for kind, storage in ROW_KINDS.items()}


class JobPlace(NamedTuple):
    """The position of a job in the list of all, newest first."""

    created_at: datetime
    job_id: int


class JobFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on jobs; empty values are no condition. `after` is the last job of the page before."""

    statuses: Sequence[str] = ()
    name: str | None = None
    after: JobPlace | None = None


def find_page(connection: Connection, wanted: JobFilter, limit: int) -> list[Job]:
    """Return the next page of matching jobs, newest first."""
    table = training_jobs.c
    columns = job_columns(Job, training_jobs, MOST_LISTED_NAMES)
    found = select(*columns).order_by(table.created_at.desc(), table.id.desc())
    if wanted.statuses:
        found = found.where(table.status.in_(wanted.statuses))
    if wanted.name is not None:
        found = found.where(table.name.icontains(wanted.name, autoescape=True))
    if wanted.after is not None:
        found = found.where(tuple_(table.created_at, table.id) < tuple_(*wanted.after))
    return [Job(**row) for row in connection.execute(found.limit(limit)).mappings()]


def find_jobs(connection: Connection, *, status: str | None = None, limit: int = 50) -> list[Job]:
    """Return the newest jobs, newest first."""
    return find_page(connection, JobFilter(statuses=() if status is None else (status,)), limit)


def find_job(connection: Connection, job_id: int) -> Job | None:
    """Return one job; None if no message of it is stored.

    Its results have at most one name more than is shown, so that callers see whether some are omitted.
    """
    columns = job_columns(Job, training_jobs, MOST_SHOWN_NAMES + 1)
    wanted = select(*columns).where(training_jobs.c.id == job_id)
    row = connection.execute(wanted).mappings().one_or_none()
    return None if row is None else Job(**row)


def removed_rows(connection: Connection, job_id: int) -> dict[str, int]:
    """Return the last `seq` of each kind that retention has removed; 0 for none."""
    columns = {kind: storage.removed_seq for kind, storage in ROW_KINDS.items() if storage.removed_seq}
    removed = select(*(training_jobs.c[name] for name in columns.values())).where(training_jobs.c.id == job_id)
    row = connection.execute(removed).one_or_none() or [0] * len(columns)
    return dict(zip(columns, row, strict=True))


def next_job_id(connection: Connection) -> int:
    """Return the first number after all jobs that exist or were deleted."""
    last = func.greatest(
        select(func.max(training_jobs.c.id)).scalar_subquery(),
        select(func.max(deleted_jobs.c.job_id)).scalar_subquery(),
    )
    return int(connection.execute(select(func.coalesce(last, 0) + 1)).scalar_one())


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One row of training_attempts, without its name, params and tags."""

    attempt: int
    status: Status
    started_at: datetime | None
    completed_at: datetime | None
    exit_code: int | None
    error_message: str | None
    mlflow_run_id: str | None
    mirror_run_id: str | None
    mirror_notes: dict[str, str] | None

    @property
    def run_id(self) -> str | None:
        """The attempt's run in MLflow: the trainer's own, else the one that workers created."""
        return self.mlflow_run_id or self.mirror_run_id


def find_attempts(connection: Connection, job_id: int) -> list[Attempt]:
    """Return the attempts of a job in the order in which they began."""
    table = training_attempts
    began = (table.c.started_at.nulls_first(), table.c.attempt)
    found = select(*columns_of(Attempt, table)).where(table.c.job_id == job_id).order_by(*began)
    return [Attempt(**row) for row in connection.execute(found).mappings()]
