"""Completely delivered jobs are settled: they are not read again until they have new rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text

from tests.factories import NOW_NS, Sender, drain, logs, metrics, one
from tests.twins.loki import LokiTwin
from trainwire.schemas.tables import training_jobs
from trainwire.stores.loki.http import LokiHttp
from trainwire.workers.resources import Resources
from trainwire.workers.sinks import cursors
from trainwire.workers.sinks.deliver import Delivery
from trainwire.workers.sinks.jsonl.backlog import JsonlBacklog
from trainwire.workers.sinks.jsonl.plugin import JsonlSettings, JsonlSink
from trainwire.workers.sinks.loki.backlog import LogBacklog
from trainwire.workers.sinks.loki.sink import LokiSink
from trainwire.workers.sinks.mlflow.backlog import MetricBacklog


def publish(resources: Resources, sender: Sender, line: str, job: int = 1) -> None:
    """Store a line."""
    sender.send(logs(line), job=job)
    drain(resources, job=job)


def deliver(resources: Resources, loki: LokiTwin) -> None:
    """Deliver the waiting rows to Loki, whose clock is set to the time of the lines."""
    sink = LokiSink(LokiHttp(loki.url), now_ns=lambda: NOW_NS)
    Delivery(resources.engine, LogBacklog(resources.engine, "loki"), sink, slice_s=60).run()


def let_jobs_be_quiet(resources: Resources) -> None:
    """Move the jobs' last messages some minutes into the past."""
    with resources.engine.begin() as connection:
        connection.execute(text("UPDATE training_jobs SET last_seen_at = last_seen_at - interval '5 min'"))


def settled(resources: Resources, sink: str = "loki") -> list[int]:
    """Return the jobs that `jobs_behind` skips for a sink."""
    found = text("SELECT id FROM training_jobs WHERE :sink = ANY(string_to_array(settled, ',')) ORDER BY id")
    with resources.engine.connect() as connection:
        return list(connection.execute(found, {"sink": sink}).scalars())


def test_a_delivered_and_quiet_job_is_settled_until_its_next_row(resources: Resources, sender: Sender) -> None:
    """A quiet job is settled, one with recent messages is not; later rows of a settled job are delivered."""
    with LokiTwin(now_ns=lambda: NOW_NS) as loki:
        publish(resources, sender, "a")
        deliver(resources, loki)
        assert settled(resources) == []
        let_jobs_be_quiet(resources)
        publish(resources, sender, "of another job", job=2)
        deliver(resources, loki)
        assert settled(resources) == [1]
        publish(resources, sender, "b")
        assert settled(resources) == []
        deliver(resources, loki)
        assert [line.line for line in loki.lines(1)] == ["a", "b"]


def test_a_job_that_is_behind_is_not_settled(resources: Resources, sender: Sender) -> None:
    """A job with undelivered rows is not settled, quiet or not."""
    publish(resources, sender, "a")
    let_jobs_be_quiet(resources)
    backlog = LogBacklog(resources.engine, "loki")
    with resources.engine.begin() as connection:
        backlog.settle(connection)
        assert backlog.jobs_behind(connection, 10) == [1]
    assert settled(resources) == []


def test_a_replay_of_a_settled_job_is_seen(resources: Resources, sender: Sender) -> None:
    """A job whose cursor is moved back is not settled any more."""
    with LokiTwin(now_ns=lambda: NOW_NS) as loki:
        publish(resources, sender, "a")
        let_jobs_be_quiet(resources)
        deliver(resources, loki)
        assert settled(resources) == [1]
    with resources.engine.begin() as connection:
        cursors.move_back(connection, "loki", 1, from_seq=1)
        assert LogBacklog(resources.engine, "loki").jobs_behind(connection, 10) == [1]


def test_a_job_under_a_lease_is_not_settled(resources: Resources, sender: Sender) -> None:
    """A job is not settled while another worker has the lease on it."""
    with LokiTwin(now_ns=lambda: NOW_NS) as loki:
        publish(resources, sender, "a")
        deliver(resources, loki)
    let_jobs_be_quiet(resources)
    with resources.engine.begin() as replaying, resources.engine.begin() as settling:
        cursors.await_lease(replaying, "loki", 1)
        LogBacklog(resources.engine, "loki").settle(settling)
        settling.commit()
        assert settled(resources) == []


@pytest.mark.parametrize("has_metrics", [True, False])
def test_metrics_are_settled_on_their_own(resources: Resources, sender: Sender, has_metrics: bool) -> None:
    """A job that is settled for Loki is still behind in MLflow if it lacks metrics there."""
    publish(resources, sender, "a")
    if has_metrics:
        sender.send(metrics(loss=0.5))
        drain(resources, "metrics")
    let_jobs_be_quiet(resources)
    with LokiTwin(now_ns=lambda: NOW_NS) as loki:
        deliver(resources, loki)
    backlog = MetricBacklog("mlflow")
    with resources.engine.begin() as connection:
        connection.execute(text("UPDATE training_attempts SET mirrored_changes = changes"))
        backlog.settle(connection)
        assert backlog.jobs_behind(connection, 10) == ([1] if has_metrics else [])
    assert settled(resources) == [1]
    assert settled(resources, "mlflow") == ([] if has_metrics else [1])


def test_two_sinks_of_the_same_rows_are_settled_apart(
    resources: Resources, sender: Sender, tmp_path: Path
) -> None:
    """Each sink of the log rows has a mark of its own, in any order of deliveries."""
    publish(resources, sender, "a")
    let_jobs_be_quiet(resources)
    backlog = JsonlBacklog("jsonl", tmp_path)
    with LokiTwin(now_ns=lambda: NOW_NS) as loki:
        deliver(resources, loki)
    assert (settled(resources), settled(resources, "jsonl")) == ([1], [])
    with resources.engine.begin() as connection:
        assert backlog.jobs_behind(connection, 10) == [1]
    sink = JsonlSink(JsonlSettings(jsonl_dir=tmp_path), tmp_path)
    Delivery(resources.engine, backlog, sink, slice_s=60).run()
    assert (settled(resources), settled(resources, "jsonl")) == ([1], [1])
    assert one(resources.engine, training_jobs, id=1)["settled"] == "jsonl,loki"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE training_jobs SET last_seen_at = now(), logs_settled = false, metrics_settled = false",
        "UPDATE training_jobs SET logs_settled = false, metrics_settled = false",
    ],
    ids=["drain", "replay"],
)
def test_older_workers_unsettle_a_job(resources: Resources, sender: Sender, statement: str) -> None:
    """A drain or a replay of an older version makes a job unsettled, for rolling upgrades."""
    publish(resources, sender, "a")
    with resources.engine.begin() as connection:
        connection.execute(text("UPDATE training_jobs SET settled = 'loki', logs_settled = true"))
        connection.execute(text(statement))
    assert settled(resources) == []


def test_the_index_finds_unsettled_jobs(resources: Resources, sender: Sender) -> None:
    """A few unsettled jobs among many settled ones are found by an index, without a scan."""
    many = text(
        "INSERT INTO training_jobs (id, last_log_seq, last_seen_at, settled) "
        "SELECT id, 0, now(), 'loki' FROM generate_series(1000, 50000) AS id"
    )
    publish(resources, sender, "a")
    with resources.engine.begin() as connection:
        connection.execute(many)
        connection.execute(text("ANALYZE training_jobs"))
        assert cursors.unsettled(connection, "loki") == [""]
        assert cursors.jobs_behind(connection, "loki", "logs", 10) == [1]
        behind = text("EXPLAIN SELECT id FROM training_jobs WHERE settled = ANY(:unsettled) AND last_log_seq > 0")
        plan = "\n".join(connection.execute(behind, {"unsettled": [""]}).scalars())
        connection.execute(text("DELETE FROM training_jobs"))
    assert "training_jobs_settled_id_idx" in plan
