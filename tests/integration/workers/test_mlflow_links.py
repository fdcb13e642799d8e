"""Jobs, and the runs that their trainers made in MLflow without a message to trainwire."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from tests.factories import NOW_NS, Sender, completion, drain, one
from tests.mlflow_server import MlflowServer
from trainwire.schemas.tables import training_attempts, training_jobs
from trainwire.schemas.wire.messages import Metrics, Point
from trainwire.stores.mlflow.runs import get_run, get_run_by_job_id
from trainwire.workers.resources import Resources
from trainwire.workers.sinks import cursors
from trainwire.workers.sinks.deliver import Delivery
from trainwire.workers.sinks.mlflow.backlog import MetricBacklog
from trainwire.workers.sinks.mlflow.links import link_runs
from trainwire.workers.sinks.mlflow.sink import MlflowSink


@pytest.fixture
def job(resources: Resources, sender: Sender) -> int:
    """A job of a number that no run in MLflow has, with one point."""
    number = uuid.uuid4().int % 10**15
    sender.send(Metrics(points=[Point(ts=NOW_NS, values={"loss": 1.0})]), job=number)
    drain(resources, "metrics", job=number)
    return number


BEGAN = datetime.fromtimestamp(NOW_NS / 10**9, UTC)


def make_run(
    server: MlflowServer, job: int, began: datetime = BEGAN, tags: Mapping[str, str] | None = None
) -> str:
    """Make a run as a trainer does that tags it with its job."""
    documents = [{"key": key, "value": value} for key, value in {"job_id": str(job), **(tags or {})}.items()]
    made = server.api.post(
        "runs/create", experiment_id="0", start_time=int(began.timestamp() * 1000), tags=documents
    )
    return str(made["run"]["info"]["run_id"])


def test_a_tagged_run_is_linked_and_the_mirror_ends(
    resources: Resources, mlflow_server: MlflowServer, job: int
) -> None:
    """The job and its attempt get the trainer's run; the mirror that began before ends, with the reason."""
    sink = MlflowSink(mlflow_server.api, f"test-{uuid.uuid4()}")
    Delivery(resources.engine, MetricBacklog("mlflow"), sink, slice_s=60).run()
    ours = one(resources.engine, training_jobs, id=job)["mlflow_run_id"]
    theirs = make_run(mlflow_server, job)
    assert link_runs(resources.engine, mlflow_server.api) == 1
    assert one(resources.engine, training_jobs, id=job)["mlflow_run_id"] == theirs
    Delivery(resources.engine, MetricBacklog("mlflow"), sink, slice_s=60).run()
    row = one(resources.engine, training_attempts, job_id=job)
    assert (row["mlflow_run_id"], row["mirror_run_id"]) == (theirs, ours)
    run = get_run(mlflow_server.api, ours)
    assert run is not None
    assert (run.status, run.tags["superseded_by"]) == ("KILLED", theirs)
    assert link_runs(resources.engine, mlflow_server.api) == 0


def test_a_link_survives_the_next_message(
    resources: Resources, mlflow_server: MlflowServer, sender: Sender, job: int
) -> None:
    """A link that beat has found is kept by later drains."""
    theirs = make_run(mlflow_server, job)
    assert link_runs(resources.engine, mlflow_server.api) == 1
    sender.send(completion(), job=job)
    drain(resources, "completions", job=job)
    assert one(resources.engine, training_jobs, id=job)["mlflow_run_id"] == theirs
    assert one(resources.engine, training_attempts, job_id=job)["mlflow_run_id"] == theirs


def test_mirrors_and_other_attempts_are_no_links(
    resources: Resources, mlflow_server: MlflowServer, job: int
) -> None:
    """A run that a worker made, here or elsewhere, or one of another attempt, is not the trainer's."""
    make_run(mlflow_server, job, tags={"mlflow.source.name": "trainwire"})
    make_run(mlflow_server, job, tags={"attempt": "2"})
    assert link_runs(resources.engine, mlflow_server.api) == 0
    assert get_run_by_job_id(mlflow_server.api, job, attempt=3) is None


def test_a_second_attempt_is_not_linked_to_the_first_ones_run(
    resources: Resources, mlflow_server: MlflowServer, sender: Sender, job: int
) -> None:
    """Without a tag of the attempt, the begin of the run decides."""
    make_run(mlflow_server, job)
    later = NOW_NS + 3600 * 10**9
    sender.send(Metrics(points=[Point(ts=later, values={"loss": 1.0})]), job=job, source="0-b", attempt=2)
    drain(resources, "metrics", job=job)
    assert link_runs(resources.engine, mlflow_server.api) == 0
    second = make_run(mlflow_server, job, datetime.fromtimestamp(later / 10**9, UTC) - timedelta(minutes=1))
    assert link_runs(resources.engine, mlflow_server.api) == 1
    assert one(resources.engine, training_attempts, job_id=job, attempt=2)["mlflow_run_id"] == second
    assert one(resources.engine, training_attempts, job_id=job, attempt=1)["mlflow_run_id"] is None


def test_an_mlflow_that_is_down_is_not_asked(resources: Resources, mlflow_server: MlflowServer, job: int) -> None:
    """While deliveries wait for MLflow's return, links are not searched either."""
    make_run(mlflow_server, job)
    with resources.engine.begin() as connection:
        cursors.mark_down(connection, "mlflow", "away", retry_in_s=60)
    assert link_runs(resources.engine, mlflow_server.api) == 0
    with resources.engine.begin() as connection:
        cursors.mark_up(connection, "mlflow")
    assert link_runs(resources.engine, mlflow_server.api) == 1


def test_jobs_of_long_ago_are_not_asked_for(resources: Resources, mlflow_server: MlflowServer, job: int) -> None:
    """Runs of jobs that ended long ago are not searched."""
    make_run(mlflow_server, job)
    with resources.engine.begin() as connection:
        connection.execute(text("UPDATE training_jobs SET last_seen_at = now() - interval '2 days'"))
    assert link_runs(resources.engine, mlflow_server.api) == 0
