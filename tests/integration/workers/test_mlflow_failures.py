"""Failures of MLflow: failing requests of one job delay that job, an outage delays all and costs one probe."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from sqlalchemy import text

from tests.factories import NOW_NS, Sender, drain, one
from tests.mlflow_faults import FaultyMlflow, faulty_mlflow
from tests.mlflow_server import MlflowServer
from trainwire.schemas.backoff import Backoff
from trainwire.schemas.tables import delivery_cursors, sink_states
from trainwire.schemas.wire.messages import Metrics, Point
from trainwire.stores.postgres.deliveries import sink_report
from trainwire.workers.resources import Resources
from trainwire.workers.sinks.base import SinkUnavailable
from trainwire.workers.sinks.deliver import PUSHES_AT_ONCE, Delivery
from trainwire.workers.sinks.mlflow.backlog import MetricBacklog
from trainwire.workers.sinks.mlflow.plugin import mlflow_api
from trainwire.workers.sinks.mlflow.sink import MlflowSink

ALL = b"/"
"""A part of every path."""


@dataclass
class Mirror:
    """A worker that mirrors through the faulty proxy."""

    resources: Resources
    sender: Sender
    proxy: FaultyMlflow
    experiment: str = field(default_factory=lambda: f"test-{uuid.uuid4()}")

    def store(self, job: int, name: str = "loss") -> None:
        """Store one more point of a job."""
        self.sender.send(Metrics(points=[Point(ts=NOW_NS, values={name: 1.0})]), job=job)
        drain(self.resources, "metrics", job=job)

    def run(self) -> None:
        """Deliver like a task that begins to use MLflow."""
        sink = MlflowSink(mlflow_api(self.proxy.url), self.experiment)
        backoff = Backoff(first_s=1000, cap_s=1000)
        Delivery(self.resources.engine, MetricBacklog("mlflow"), sink, slice_s=60, backoff=backoff).run()

    def let_time_pass(self, *tables: str) -> None:
        """Make all waiting attempts in these tables due."""
        column = {"sink_states": "next_probe_at", "delivery_cursors": "next_attempt_at"}
        with self.resources.engine.begin() as connection:
            for table in tables:
                name = column[table]
                connection.execute(text(f"UPDATE {table} SET {name} = now() WHERE {name} IS NOT NULL"))

    def confirmed(self) -> dict[int, int]:
        """Return the confirmed position of each job."""
        with self.resources.engine.connect() as connection:
            found = connection.execute(text("SELECT job_id, confirmed_seq FROM delivery_cursors"))
            return {row.job_id: row.confirmed_seq for row in found}


@pytest.fixture
def mirror(resources: Resources, sender: Sender, mlflow_server: MlflowServer) -> Iterator[Mirror]:
    """A worker on an empty database, whose MLflow fails as the test sets it."""
    with faulty_mlflow(mlflow_server.url) as proxy:
        yield Mirror(resources, sender, proxy)


def test_a_job_that_mlflow_fails_waits_alone(mirror: Mirror) -> None:
    """After another job's success only the failing job waits, which is shown, and it is retried."""
    mirror.proxy.poison = b"poison"
    mirror.store(1, "poison")
    with pytest.raises(SinkUnavailable, match="MLflow answered 500: it hurts"):
        mirror.run()
    for job in (2, 3):
        mirror.store(job)
    mirror.let_time_pass("sink_states")
    mirror.run()
    assert mirror.confirmed() == {1: 0, 2: 1, 3: 1}
    assert one(mirror.resources.engine, sink_states, sink="mlflow")["down_since"] is None
    assert one(mirror.resources.engine, delivery_cursors, job_id=1)["attempts"] == 2

    failures = len(mirror.proxy.failed)
    mirror.store(2)
    mirror.run()
    assert mirror.confirmed() == {1: 0, 2: 2, 3: 1}
    assert len(mirror.proxy.failed) == failures, "it was not its time"
    mirror.let_time_pass("delivery_cursors")
    mirror.store(2)
    mirror.run()
    assert mirror.confirmed() == {1: 0, 2: 3, 3: 1}
    with mirror.resources.engine.connect() as connection:
        report = sink_report(connection, "mlflow", limit=10)
    (shown,) = report.jobs
    assert (report.health.answers, shown.job_id, shown.attempts, shown.last_error) == (
        *(True, 1, 3),
        "MLflow answered 500: it hurts",
    )
    assert shown.next_attempt_at is not None

    mirror.proxy.poison = None
    mirror.let_time_pass("delivery_cursors")
    mirror.run()
    assert mirror.confirmed() == {1: 1, 2: 3, 3: 1}
    cursor = one(mirror.resources.engine, delivery_cursors, job_id=1)
    assert (cursor["attempts"], cursor["last_error"], cursor["next_attempt_at"]) == (0, None, None)


def test_an_outage_with_answers_costs_one_probe(mirror: Mirror) -> None:
    """If every request gets a 500, each probe is one request, and all jobs continue afterwards."""
    for job in range(1, 9):
        mirror.store(job)
    mirror.proxy.poison = ALL
    with pytest.raises(SinkUnavailable):
        mirror.run()
    assert len(mirror.proxy.failed) <= PUSHES_AT_ONCE
    for probe in (2, 3):
        failures = len(mirror.proxy.failed)
        mirror.run()
        assert len(mirror.proxy.failed) == failures, "no probe is due"
        mirror.let_time_pass("sink_states")
        with pytest.raises(SinkUnavailable):
            mirror.run()
        assert len(mirror.proxy.failed) == failures + 1
        assert one(mirror.resources.engine, sink_states, sink="mlflow")["attempts"] == probe
    mirror.proxy.poison = None
    mirror.let_time_pass("sink_states")
    mirror.run()
    assert mirror.confirmed() == dict.fromkeys(range(1, 9), 1)


def test_a_job_that_asks_mlflow_nothing_is_no_probe(mirror: Mirror) -> None:
    """Points of a trainer with its own run are skipped in an outage, and do not end it."""
    mirror.store(1)
    mirror.proxy.poison = ALL
    with pytest.raises(SinkUnavailable):
        mirror.run()
    mirror.sender.send(Metrics(points=[Point(ts=NOW_NS, values={"loss": 1.0})], mlflow_run_id="theirs"), job=3)
    drain(mirror.resources, "metrics", job=3)
    mirror.let_time_pass("sink_states", "delivery_cursors")
    failures = len(mirror.proxy.failed)
    mirror.run()
    assert len(mirror.proxy.failed) == failures + 1
    assert mirror.confirmed() == {1: 0, 3: 1}
    assert one(mirror.resources.engine, sink_states, sink="mlflow")["down_since"] is not None


def test_a_job_that_fails_alone(mirror: Mirror) -> None:
    """A failing job alone is the only probe, at its own times; another job that appears is tried first."""
    mirror.proxy.poison = b"poison"
    mirror.store(1, "poison")
    with pytest.raises(SinkUnavailable):
        mirror.run()
    for attempts in (2, 3):
        mirror.let_time_pass("sink_states", "delivery_cursors")
        mirror.run()
        assert one(mirror.resources.engine, delivery_cursors, job_id=1)["attempts"] == attempts
    assert one(mirror.resources.engine, sink_states, sink="mlflow")["attempts"] == 1
    mirror.store(2)
    mirror.let_time_pass("sink_states", "delivery_cursors")
    mirror.run()
    assert mirror.confirmed() == {1: 0, 2: 1}
    assert one(mirror.resources.engine, sink_states, sink="mlflow")["down_since"] is None
