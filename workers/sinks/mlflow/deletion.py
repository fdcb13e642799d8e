"""Deletion of the runs that workers made for a job."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from msgspec.structs import replace
from sqlalchemy import Connection, text

from trainwire.stores.mlflow.http import MlflowApi, MlflowRefused, MlflowUnavailable
from trainwire.stores.mlflow.runs import (
    JOB_TAG,
    MIRROR_SOURCE,
    SOURCE_TAG,
    delete_run,
    experiment_ids,
    get_run,
    search_runs,
    tag_filter,
)
from trainwire.stores.postgres.deletion import Deletion, DeletionPart
from trainwire.workers.resources import Resources
from trainwire.workers.sinks.mlflow.http import mlflow_api
from trainwire.workers.sinks.mlflow.run import CREATED_TAG
from trainwire.workers.sinks.plugin import NotSetUp, Outcome

MAX_RUNS: Final = 1000


def delete_runs(resources: Resources, deletion: Deletion, part: DeletionPart) -> DeletionPart:
    """Mark the runs that workers made as deleted. Raises `NotSetUp` and the errors of
    `trainwire.stores.mlflow.http`."""
    settings = resources.settings
    with resources.engine.begin() as connection:
        mirrors, own_runs = _runs_of_attempts(connection, deletion.job_id)
    for run_id in own_runs:
        part = part.noted(f"run {run_id} was made by the trainer itself: it stays")
    if settings.mlflow_tracking_uri is None:
        if mirrors:
            raise NotSetUp("MLFLOW_TRACKING_URI is not set here")
        return replace(part, state="done")
    api = mlflow_api(settings.mlflow_tracking_uri)
    try:
        # A worker may have made a run and been killed before Postgres had its id.
        unknown = sorted(set(_runs_of(api, deletion)) - set(mirrors))
    except MlflowUnavailable as exc:
        if mirrors or part.planned:
            raise
        return replace(part, state="done").noted(f"{exc}; no run of this job is known")
    outcomes = [_delete_run(api, deletion.job_id, run_id) for run_id in [*mirrors, *unknown]]
    for outcome in outcomes:
        part = replace(part, deleted=part.deleted + outcome.is_deleted).noted(outcome.note)
    if part.deleted:
        part = part.noted("MLflow keeps deleted runs until `mlflow gc` removes them")
    return replace(part, state="left" if any(outcome.is_left for outcome in outcomes) else "done")


def _delete_run(api: MlflowApi, job_id: int, run_id: str) -> Outcome:
    run = get_run(api, run_id)
    if run is None or run.is_deleted:
        return Outcome()
    if not run.is_mirror or run.tags.get(JOB_TAG) != str(job_id):
        return Outcome(note=f"run {run_id} is not tagged as one that trainwire made for this job: it stays")
    try:
        delete_run(api, run_id)
    except MlflowRefused as exc:
        return Outcome(is_left=True, note=str(exc))
    return Outcome(is_deleted=True)


def _runs_of(api: MlflowApi, deletion: Deletion) -> Iterator[str]:
    identity = {JOB_TAG: str(deletion.job_id), CREATED_TAG: deletion.job_created_at.isoformat()}
    wanted = tag_filter(identity | {SOURCE_TAG: MIRROR_SOURCE})
    for run in search_runs(api, experiment_ids(api), wanted, MAX_RUNS):
        yield run.run_id


def _runs_of_attempts(connection: Connection, job_id: int) -> tuple[list[str], list[str]]:
    """Return the MLflow runs that workers made for the attempts, and those that the trainer made itself."""
    rows: list[Any] = list(connection.execute(_RUNS, {"job_id": job_id}))
    mirrors = [mirror for mirror, _ in rows if mirror]
    return mirrors, [own for _, own in rows if own and own not in mirrors]


_RUNS: Final = text(
    "SELECT mirror_run_id, mlflow_run_id FROM training_attempts WHERE job_id = :job_id ORDER BY attempt"
)
