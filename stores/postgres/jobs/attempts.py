"""Reads the attempts of a job from Postgres."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

import msgspec
from sqlalchemy import Connection, select

from trainwire.schemas.tables import training_attempts
from trainwire.schemas.wire.messages import Status
from trainwire.stores.postgres.columns import columns_of


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One row of training_attempts, without params, tags and provenance."""

    attempt: int
    name: str | None
    status: Status
    started_at: datetime | None
    completed_at: datetime | None
    exit_code: int | None
    error_message: str | None
    mlflow_run_id: str | None
    mirror_run_id: str | None
    mirror_notes: dict[str, str] | None
    resume_step: int | None = None
    """The step from which the attempt continues: later points of earlier attempts are rolled back."""
    stop: dict[str, Any] | None = None
    """The request to stop the attempt: `requested_at`, `requested_by`, `reason`."""

    @property
    def run_id(self) -> str | None:
        """Id of the attempt's MLflow run: the one that the trainer logs to, else the one that workers created."""
        return self.mlflow_run_id or self.mirror_run_id


def find_attempts(connection: Connection, job_id: int) -> list[Attempt]:
    """Return the attempts of a job in the order of their start times, those without a start time first."""
    table = training_attempts
    began = (table.c.started_at.nulls_first(), table.c.attempt)
    found = select(*columns_of(Attempt, table)).where(table.c.job_id == job_id).order_by(*began)
    return [Attempt(**row) for row in connection.execute(found).mappings()]


def find_provenance(connection: Connection, job_id: int, attempt: int) -> dict[str, Any]:
    """Return the provenance of an attempt: its command, code and machine (docs/provenance.md); {} if unknown."""
    table = training_attempts.c
    wanted = select(table.provenance).where(table.job_id == job_id, table.attempt == attempt)
    return connection.execute(wanted).scalar_one_or_none() or {}


def renaming(attempts: Sequence[Attempt]) -> str | None:
    """Return a warning if a user may have reused the job number of another training, else None.

    There are two signs: the first stored attempt resumes from a step, or two consecutive named attempts have
    different names. If both are present, the warning is about the first; of several changes of the name it is
    about the newest.
    """
    if attempts and attempts[0].resume_step is not None:
        return (
            f"attempt {attempts[0].attempt} resumes from step {attempts[0].resume_step}, and no earlier attempt "
            "of the job is stored: was the number of another job meant?"
        )
    named = [attempt for attempt in attempts if attempt.name is not None]
    changes = [(before, after) for before, after in pairwise(named) if before.name != after.name]
    if not changes:
        return None
    before, after = changes[-1]
    return (
        f"attempt {before.attempt} is called {before.name!r}, and attempt {after.attempt} {after.name!r}: where "
        "these are two trainings, give the second a number of its own, or none"
    )
