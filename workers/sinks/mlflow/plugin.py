"""Connects the workers to MLflow: its HTTP client, delivery, checks, and deletion of the runs of a job."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

import requests
from msgspec.structs import replace
from sqlalchemy import Connection, text

from trainwire.stores.mlflow.http import (
    MISSING,
    TIMEOUT_S,
    MlflowApi,
    MlflowRefused,
    MlflowUnavailable,
    no_answer,
    plain_send,
)
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
from trainwire.workers.findings import Finding, Part
from trainwire.workers.resources import Resources
from trainwire.workers.settings import Settings
from trainwire.workers.sinks.base import Sink, SinkUnavailable
from trainwire.workers.sinks.mlflow.backlog import MetricBacklog, mirror_again
from trainwire.workers.sinks.mlflow.run import CREATED_TAG
from trainwire.workers.sinks.mlflow.sink import MlflowSink
from trainwire.workers.sinks.plugin import NotSetUp, Outcome, SinkBacklog, SinkPlugin

MLFLOW: Final = Part("mlflow")
MAX_RUNS: Final = 1000
_NO_STATUS: Final[frozenset[int]] = frozenset()


class MlflowPlugin(SinkPlugin):
    """The sink that stores metrics and attempts as runs in MLflow."""

    def is_on(self, settings: Settings) -> bool:
        """Return whether MLFLOW_TRACKING_URI is set."""
        return settings.mlflow_tracking_uri is not None

    def connect(self, resources: Resources) -> tuple[SinkBacklog[Any, Any], Sink[Any, Any]]:
        """Return the object that reads metric rows for MLflow, and the sink that writes to MLflow.

        The connections to MLflow are those of this process.
        """
        settings = resources.settings
        sink = MlflowSink(mlflow_api(settings.mlflow_tracking_uri or ""), settings.mlflow_experiment)
        return MetricBacklog(MlflowSink.name), sink

    def delete(self, resources: Resources, deletion: Deletion, part: DeletionPart) -> DeletionPart:
        """Mark the MLflow runs that workers created for the job as deleted."""
        try:
            return _delete_runs(resources, deletion, part)
        except (MlflowUnavailable, MlflowRefused) as exc:
            raise SinkUnavailable(str(exc)) from exc

    def examine(self, settings: Settings) -> Iterator[Finding]:
        """Yield findings about whether MLflow is reachable, and whether its experiment was deleted."""
        api, experiment = MlflowApi(plain_send(settings.mlflow_tracking_uri or "")), settings.mlflow_experiment
        try:
            found = api.get("experiments/get-by-name", experiment_name=experiment)
        except MlflowRefused as exc:
            if exc.code == MISSING:
                yield MLFLOW.ok("answers", f"answers; the experiment {experiment!r} is made when it is needed")
            else:
                yield MLFLOW.error("answers", f"refuses: {exc}", "look at its log, and at MLFLOW_TRACKING_URI")
            return
        except MlflowUnavailable as exc:
            remedy = "start it, or correct MLFLOW_TRACKING_URI; metrics wait in Postgres"
            yield MLFLOW.error("answers", str(exc), remedy)
            return
        if found.get("experiment", {}).get("lifecycle_stage") == "deleted":
            says = f"the experiment {experiment!r} is deleted, and everything waits"
            remedy = "restore it (mlflow experiments restore), or set MLFLOW_EXPERIMENT"
            yield MLFLOW.error("experiment", says, remedy)
        else:
            yield MLFLOW.ok("answers", f"answers, with the experiment {experiment!r}")

    def verify(self, _settings: Settings, _connection: Connection, job_id: int) -> str:
        """Return a text with the command that shows the MLflow runs of the job.

        There is no comparison, because MLflow has no copies of rows.
        """
        return f"see `trainwire mlflow {job_id}`"

    def replayed(self, connection: Connection, job_id: int) -> None:
        """Mark all attempts of the job to be sent to MLflow again."""
        mirror_again(connection, job_id)


@cache
def mlflow_api(url: str) -> MlflowApi:
    """Return the client of the MLflow server `url`; it supports all types of credentials that MLflow supports.

    It sends requests by MLflow's own client, without that client's retries, which last minutes. One client per URL
    is cached in each process.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read at import
    # The import takes seconds and a hundred megabytes: only workers that deliver to MLflow do it.
    from mlflow.exceptions import MlflowException  # noqa: PLC0415
    from mlflow.utils import credentials, rest_utils  # noqa: PLC0415

    get_credentials: Any = credentials.get_default_host_creds
    http_request: Any = rest_utils.http_request

    def send(
        method: str, path: str, *, params: Mapping[str, Any] | None = None, data: bytes | None = None
    ) -> requests.Response:
        try:
            answer: requests.Response = http_request(
                get_credentials(url),
                path,
                method,
                max_retries=0,
                retry_codes=_NO_STATUS,
                raise_on_status=False,
                respect_retry_after_header=False,
                timeout=TIMEOUT_S,
                extra_headers={"Content-Type": "application/json"},
                params=params,
                data=data,
            )
        except MlflowException as exc:
            raise no_answer(url, exc.__context__ or exc) from exc
        return answer

    return MlflowApi(send)


def _delete_runs(resources: Resources, deletion: Deletion, part: DeletionPart) -> DeletionPart:
    """Mark the MLflow runs that workers created for the job as deleted; see `SinkPlugin.delete`.

    Raises `NotSetUp`, and the errors of `trainwire.stores.mlflow.http` if the deletion is to be retried later.
    """
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
        # A worker may have been killed after it made a run, before the id was in Postgres.
        unrecorded = sorted(set(_tagged_runs(api, deletion)) - set(mirrors))
    except MlflowUnavailable as exc:
        if mirrors or part.planned:
            raise
        return replace(part, state="done").noted(f"{exc}; no run of this job is known")
    outcomes = [_delete_run(api, deletion.job_id, run_id) for run_id in [*mirrors, *unrecorded]]
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


def _tagged_runs(api: MlflowApi, deletion: Deletion) -> list[str]:
    """Return the ids of runs whose tags state that workers created them for this job, at most `MAX_RUNS`."""
    tags = {
        JOB_TAG: str(deletion.job_id),
        CREATED_TAG: deletion.job_created_at.isoformat(),
        SOURCE_TAG: MIRROR_SOURCE,
    }
    return [run.run_id for run in search_runs(api, experiment_ids(api), tag_filter(tags), MAX_RUNS)]


def _runs_of_attempts(connection: Connection, job_id: int) -> tuple[list[str], list[str]]:
    """Return the ids of the runs that workers created for the job, and of those that its trainer created."""
    rows: list[Any] = list(connection.execute(_RUNS, {"job_id": job_id}))
    mirrors = [mirror for mirror, _ in rows if mirror]
    return mirrors, [own for _, own in rows if own and own not in mirrors]


_RUNS: Final = text(
    "SELECT mirror_run_id, mlflow_run_id FROM training_attempts WHERE job_id = :job_id ORDER BY attempt"
)
PLUGIN: Final = MlflowPlugin()
