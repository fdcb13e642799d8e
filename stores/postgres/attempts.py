"""The attempts of a job as Postgres knows them."""

from __future__ import annotations

from datetime import datetime

import msgspec
from sqlalchemy import Connection, select

from trainwire.schemas.messages import Status
from trainwire.schemas.tables import training_attempts
from trainwire.stores.postgres.columns import columns_of


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One row of training_attempts, without what it was called."""

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
        """Return the run in MLflow that counts: the trainer's own before ours."""
        return self.mlflow_run_id or self.mirror_run_id


def find_attempts(connection: Connection, job_id: int) -> list[Attempt]:
    """Return the attempts of a job in the order in which they began."""
    table = training_attempts
    began = (table.c.started_at.nulls_first(), table.c.attempt)
    found = select(*columns_of(Attempt, table)).where(table.c.job_id == job_id).order_by(*began)
    return [Attempt(**row) for row in connection.execute(found).mappings()]
