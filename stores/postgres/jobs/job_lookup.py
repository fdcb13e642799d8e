"""Reads jobs from Postgres."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Text, cast, func, select

from trainwire.schemas.tables import deleted_jobs, training_jobs
from trainwire.schemas.tables.kinds import ROW_KINDS
from trainwire.schemas.wire.messages import FINISHED, Status
from trainwire.schemas.wire.validation import LEAST_MADE_ID
from trainwire.stores.postgres.columns import MOST_SHOWN_NAMES, job_columns
from trainwire.stores.postgres.jobs.job_values import shown_name

LEAST_PREFIX: Final = 4
"""Smallest number of digits that are accepted as the beginning of a job number."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One row of training_jobs; `final_metrics` and `best_metrics` may lack some names (`job_columns`).

    `name` and `tags` are the ones that people have given to the job, otherwise the trainer's.
    """

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
    resume_step: int | None
    parent_id: int | None
    fork_step: int | None
    params: dict[str, Any] | None
    tags: dict[str, Any] | None
    note: str | None
    archived_at: datetime | None
    stop: dict[str, Any] | None
    """The request to stop the job's attempt: `requested_at`, `requested_by`, `reason`."""
    last_log_seq: int
    last_metric_seq: int
    last_checkpoint_seq: int

    @property
    def is_finished(self) -> bool:
        """Whether the current attempt has ended."""
        return self.status in FINISHED

    @property
    def rows(self) -> dict[str, int]:
        """Kind -> number of rows that the job has ever had, including removed ones."""
        return {kind: getattr(self, storage.last_seq) for kind, storage in ROW_KINDS.items()}


def find_named(
    connection: Connection, text: str, limit: int, *, may_abbreviate: bool = True
) -> tuple[list[Job], int]:
    """Return the newest jobs named `text`, at most `limit`, and the number of all such jobs.

    If there is none and `may_abbreviate` is True, jobs whose name begins with `text` are returned instead. If
    `text` is a number of at least LEAST_PREFIX digits, these are jobs whose number begins with it; only numbers
    that trainers generated are searched, because users choose short ones.
    """
    table = training_jobs.c
    conditions = [shown_name == text]
    is_number = text.isascii() and text.isdecimal()
    if may_abbreviate and not is_number:
        conditions.append(func.starts_with(shown_name, text))
    elif may_abbreviate and len(text) >= LEAST_PREFIX:
        conditions.append((table.id >= LEAST_MADE_ID) & func.starts_with(cast(table.id, Text), text))
    for condition in conditions:
        newest = select(table.id).where(condition).order_by(table.created_at.desc(), table.id.desc())
        ids = connection.execute(newest.limit(limit)).scalars().all()
        if ids:
            count = connection.execute(select(func.count()).select_from(training_jobs).where(condition))
            found = (find_job(connection, job_id) for job_id in ids)
            return [job for job in found if job is not None], count.scalar_one()
    return [], 0


def is_known(connection: Connection, job_id: int) -> bool:
    """Return whether a job with this number exists or was deleted."""
    exists = [select(column).where(column == job_id) for column in (training_jobs.c.id, deleted_jobs.c.job_id)]
    return connection.execute(exists[0].union(exists[1])).first() is not None


def find_job(connection: Connection, job_id: int) -> Job | None:
    """Return one job; None if it does not exist.

    `final_metrics` and `best_metrics` have up to `MOST_SHOWN_NAMES` + 1 names. The additional one shows callers
    that names were omitted.
    """
    columns = job_columns(Job, training_jobs, MOST_SHOWN_NAMES + 1)
    wanted = select(*columns).where(training_jobs.c.id == job_id)
    row = connection.execute(wanted).mappings().one_or_none()
    return None if row is None else Job(**row)


def removed_rows(connection: Connection, job_id: int) -> dict[str, int]:
    """Return kind -> last `seq` that retention has removed, 0 if none, for each kind of row that it removes."""
    columns = {kind: storage.removed_seq for kind, storage in ROW_KINDS.items() if storage.removed_seq}
    removed = select(*(training_jobs.c[name] for name in columns.values())).where(training_jobs.c.id == job_id)
    row = connection.execute(removed).one_or_none() or [0] * len(columns)
    return dict(zip(columns, row, strict=True))
