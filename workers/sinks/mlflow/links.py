"""Finds runs that trainers created in MLflow themselves and tagged with their job, and links them to the jobs."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, Engine, text

from trainwire.stores.mlflow.http import MlflowApi
from trainwire.stores.mlflow.runs import ATTEMPT_TAG, JOB_TAG, MlflowRun, experiment_ids, search_runs, tag_filter
from trainwire.workers.drain.store import postgres_errors
from trainwire.workers.sinks import cursors
from trainwire.workers.sinks.mlflow.sink import MlflowSink

JOBS_AT_ONCE: Final = 20
"""Maximum number of jobs in one call of `link_runs`; each takes one request."""
SEEN_WITHIN: Final = timedelta(days=1)
"""Jobs that have sent no message for longer than this are skipped."""
RUNS_OF_A_JOB: Final = 50
EARLIEST: Final = timedelta(minutes=10)
"""A run without an attempt tag may have begun at most this long before its attempt (from attempt 2 on)."""


def link_runs(engine: Engine, api: MlflowApi) -> int:
    """Find MLflow runs for jobs that have no run of their trainer yet; return how many jobs were linked.

    Examines at most `JOBS_AT_ONCE` jobs, chosen at random among those that sent a message within `SEEN_WITHIN`.
    Sends no request while MLflow is marked as down. Raises the errors of `trainwire.stores.mlflow.http`, and
    `Unavailable` if Postgres does not answer.
    """
    with postgres_errors(), engine.begin() as connection:
        if cursors.sink_state(connection, MlflowSink.name).next_probe_at is not None:
            return 0
        wanted = {"seen_within": SEEN_WITHIN, "limit": JOBS_AT_ONCE}
        jobs = connection.execute(_WITHOUT_LINK, wanted).all()
    experiments = experiment_ids(api) if jobs else []
    linked = 0
    for job_id, attempt, started_at in jobs:
        found = search_runs(api, experiments, tag_filter({JOB_TAG: str(job_id)}), RUNS_OF_A_JOB)
        run = next((run for run in found if _is_of(run, attempt, started_at)), None)
        if run is not None:
            with postgres_errors(), engine.begin() as connection:
                linked += _link(connection, job_id, attempt, run.run_id)
    return linked


def _is_of(run: MlflowRun, attempt: int, started_at: datetime | None) -> bool:
    """Return whether a run that is tagged with the job was created by the trainer for this attempt.

    For a run without an attempt tag this is assumed if it is attempt 1, or if the run began at most `EARLIEST`
    before the attempt.
    """
    if run.is_mirror:
        return False
    if ATTEMPT_TAG in run.tags:
        return run.tags[ATTEMPT_TAG] == str(attempt)
    if attempt == 1 or run.started_at is None or started_at is None:
        return attempt == 1
    return run.started_at >= started_at - EARLIEST


def _link(connection: Connection, job_id: int, attempt: int, run_id: str) -> int:
    """Store the id of the MLflow run that the trainer created for an attempt, unless one is stored already.

    Returns the number of changed rows. If workers have created a run of their own for the attempt, the next
    delivery ends it.
    """
    link = {"job_id": job_id, "attempt": attempt, "run_id": run_id}
    # First the job, then its attempt: the lock order of a drain.
    connection.execute(_LINK_JOB, link)
    return connection.execute(_LINK_ATTEMPT, link).rowcount


_WITHOUT_LINK: Final = text(
    "SELECT id, attempt, attempts.started_at FROM training_jobs JOIN training_attempts AS attempts "
    "USING (attempt) "
    "WHERE attempts.job_id = id AND attempts.mlflow_run_id IS NULL AND last_seen_at > now() - :seen_within "
    "ORDER BY random() LIMIT :limit"
)
_LINK_JOB: Final = text(
    "UPDATE training_jobs SET mlflow_run_id = :run_id FROM training_attempts AS attempts "
    "WHERE id = :job_id AND training_jobs.attempt = :attempt AND attempts.job_id = id "
    "AND attempts.attempt = training_jobs.attempt AND attempts.mlflow_run_id IS NULL"
)
_LINK_ATTEMPT: Final = text(
    "UPDATE training_attempts SET mlflow_run_id = :run_id, changes = changes + 1 "
    "WHERE job_id = :job_id AND attempt = :attempt AND mlflow_run_id IS NULL"
)
