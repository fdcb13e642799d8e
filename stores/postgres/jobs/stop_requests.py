"""Stores requests of users to stop the current attempt of a job (docs/stop.md)."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec
from sqlalchemy import Connection, select
from sqlalchemy.dialects.postgresql import insert

from trainwire.schemas.tables import stop_requests, training_jobs
from trainwire.schemas.wire.messages import FINISHED
from trainwire.stores.postgres.columns import columns_of
from trainwire.stores.postgres.jobs.user_texts import check_text

MAX_BY_CHARS: Final = 200
MAX_REASON_CHARS: Final = 1000


class StopRequested(msgspec.Struct, frozen=True, kw_only=True):
    """A stored request to stop an attempt of a job."""

    job_id: int
    attempt: int
    requested_at: datetime
    requested_by: str
    reason: str | None


class UnknownJob(LookupError):  # noqa: N818 - shown to users
    """There is no job with this number in Postgres."""


class AlreadyEnded(Exception):  # noqa: N818 - shown to users
    """The job has ended, so there is no training to stop."""


def request_stop(connection: Connection, job_id: int, by: str, reason: str | None) -> StopRequested:
    """Store a request to stop the job's current attempt, in the caller's transaction, and return it.

    If the attempt has a request already, nothing changes and the first request is returned. Raises `UnknownJob` if
    there is no such job, `AlreadyEnded` if it has ended, and `WrongText` for an invalid `by` or `reason`.
    """
    by, reason = by.strip(), (reason or "").strip() or None
    check_text("by", by, MAX_BY_CHARS)
    check_text("reason", reason or "", MAX_REASON_CHARS)
    jobs = training_jobs.c
    # Locked: its completion may be stored now.
    wanted = select(jobs.status, jobs.attempt).where(jobs.id == job_id).with_for_update()
    job = connection.execute(wanted).one_or_none()
    if job is None:
        raise UnknownJob(f"no job {job_id} in the database: `trainwire jobs` lists all jobs")
    if job.status in FINISHED:
        raise AlreadyEnded(f"job {job_id} has ended ({job.status}): there is no training to stop")
    values = {"job_id": job_id, "attempt": job.attempt, "requested_by": by or "unknown", "reason": reason}
    connection.execute(insert(stop_requests).values(values).on_conflict_do_nothing())
    requests = stop_requests.c
    stored = select(*columns_of(StopRequested, stop_requests)).where(
        requests.job_id == job_id, requests.attempt == job.attempt
    )
    return StopRequested(**connection.execute(stored).mappings().one())
