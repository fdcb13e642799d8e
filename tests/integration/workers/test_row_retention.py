"""Retention of rows: removed rows, and those that are always kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from sqlalchemy import Engine, text

from tests.factories import Sender, completion, drain, logs, metrics, one, rows
from tests.twins.loki import LokiTwin
from trainwire.cli.commands.operations.deliveries import replay_rows
from trainwire.schemas.tables import training_jobs, training_logs, training_metrics
from trainwire.stores.loki.http import LokiHttp
from trainwire.workers.operations.row_retention import RowPolicy, RowRetention, plan, row_policies
from trainwire.workers.resources import Resources
from trainwire.workers.settings import load_settings
from trainwire.workers.sinks.deliver import Delivery
from trainwire.workers.sinks.loki.backlog import LogBacklog
from trainwire.workers.sinks.loki.sink import LokiSink

LOGS = RowPolicy("training_logs", "last_log_seq", "removed_log_seq", 30, ())
LOGS_IN_LOKI = RowPolicy("training_logs", "last_log_seq", "removed_log_seq", 30, ("loki",))
METRICS = RowPolicy("training_metrics", "last_metric_seq", "removed_metric_seq", 30, ())
StoreRows = Callable[..., None]


@pytest.fixture
def store_rows(resources: Resources, sender: Sender) -> StoreRows:
    """Give a function that stores lines and a point of a job, some of them 40 days ago, and may end the job."""

    def store_rows(job: int = 1, old: int = 0, new: int = 0, *, ends: bool = True) -> None:
        if old:
            sender.send(logs(*(f"old {number}" for number in range(old))), job=job)
            sender.send(metrics(loss=0.9), job=job)
            drain(resources, "logs", job)
            drain(resources, "metrics", job)
            for table, key in (
                ("training_logs", "job_id"),
                ("training_metrics", "job_id"),
                ("training_jobs", "id"),
            ):
                aged = f"UPDATE {table} SET created_at = now() - interval '40 days' WHERE {key} = {job}"
                with resources.engine.begin() as connection:
                    connection.execute(text(aged))
        if new:
            sender.send(logs(*(f"new {number}" for number in range(new))), job=job)
            drain(resources, "logs", job)
        if ends:
            sender.send(completion(), job=job)
            drain(resources, "completions", job)

    return store_rows


def confirm(engine: Engine, job: int, seq: int, sink: str = "loki") -> None:
    """Set the row up to which a sink has confirmed a job."""
    cursor = "INSERT INTO delivery_cursors (sink, job_id, confirmed_seq) VALUES (:sink, :job, :seq)"
    with engine.begin() as connection:
        connection.execute(text(cursor), {"job": job, "seq": seq, "sink": sink})


def plan_of(resources: Resources, keeping: RowPolicy) -> list[int]:
    """Return how many rows of each job a dry run would remove."""
    with resources.engine.connect() as connection:
        return [old.rows for old in plan(connection, keeping)]


def contents(engine: Engine, job: int = 1) -> list[str]:
    """Return the remaining lines of a job."""
    return [content for of, content in rows(engine, training_logs, "job_id", "content") if of == job]


def test_old_rows_of_finished_jobs_go_and_young_ones_stay(resources: Resources, store_rows: StoreRows) -> None:
    """Older rows of a finished job are removed, younger ones are kept, and the job has the last removed number."""
    store_rows(1, old=3, new=2)
    store_rows(2, old=1)
    assert RowRetention(resources.engine, LOGS).run(dry_run=False) == 4
    assert contents(resources.engine) == ["new 0", "new 1"]
    assert contents(resources.engine, 2) == []
    assert one(resources.engine, training_jobs, id=1)["removed_log_seq"] == 3
    assert len(rows(resources.engine, training_metrics, "seq")) == 2, "points have a setting of their own"
    assert RowRetention(resources.engine, METRICS).run(dry_run=False) == 2
    assert RowRetention(resources.engine, LOGS).run(dry_run=False) == 0


@pytest.mark.parametrize("status", ["pending", "running", "stalled", "lost"])
def test_a_job_that_is_not_finished_keeps_everything(
    resources: Resources, store_rows: StoreRows, status: str
) -> None:
    """Rows of any age are kept while a job is not finished."""
    store_rows(1, old=3, ends=False)
    with resources.engine.begin() as connection:
        connection.execute(text("UPDATE training_jobs SET status = :status"), {"status": status})
    assert RowRetention(resources.engine, LOGS).run(dry_run=False) == 0
    assert len(contents(resources.engine)) == 3


def test_rows_wait_for_all_sinks_that_receive_them(resources: Resources, store_rows: StoreRows) -> None:
    """A row is removed once every sink has confirmed it; without a confirmation none is removed."""
    store_rows(1, old=5)
    keeping = replace(LOGS, sinks=("loki", "jsonl"))
    confirm(resources.engine, 1, 4)
    assert plan_of(resources, keeping) == []
    confirm(resources.engine, 1, 2, "jsonl")
    assert plan_of(resources, keeping) == [2]
    assert RowRetention(resources.engine, keeping).run(dry_run=False) == 2
    assert contents(resources.engine) == ["old 2", "old 3", "old 4"]


def test_rows_without_confirmation_stay(resources: Resources, store_rows: StoreRows) -> None:
    """Rows after the sink's cursor are kept, and all rows of a job without a cursor."""
    store_rows(1, old=5)
    store_rows(2, old=5)
    confirm(resources.engine, 1, 2)
    assert RowRetention(resources.engine, LOGS_IN_LOKI).run(dry_run=False) == 2
    assert contents(resources.engine) == ["old 2", "old 3", "old 4"]
    assert len(contents(resources.engine, 2)) == 5
    with resources.engine.begin() as connection:
        connection.execute(text("UPDATE delivery_cursors SET confirmed_seq = 5"))
    assert RowRetention(resources.engine, LOGS_IN_LOKI).run(dry_run=False) == 3


def test_a_dry_run_names_and_removes_nothing(resources: Resources, store_rows: StoreRows) -> None:
    """A dry run counts the rows to remove by job."""
    store_rows(1, old=3, new=1)
    store_rows(2, old=4)
    assert RowRetention(resources.engine, LOGS).run(dry_run=True) == 7
    assert len(contents(resources.engine)) == 4
    with resources.engine.connect() as connection:
        assert [(each.job_id, each.rows) for each in plan(connection, LOGS)] == [(1, 3), (2, 4)]


def test_small_batches_of_which_each_is_committed(resources: Resources, store_rows: StoreRows) -> None:
    """A run that is out of time after one batch has removed that batch, and the next run continues."""
    store_rows(1, old=25)
    late = RowRetention(resources.engine, LOGS, batch_rows=10, clock=iter(range(0, 10_000, 1000)).__next__)
    assert late.run(dry_run=False) == 10
    assert contents(resources.engine)[0] == "old 10"
    assert RowRetention(resources.engine, LOGS, batch_rows=10).run(dry_run=False) == 15


def test_a_job_that_a_drain_holds_is_left_for_later(resources: Resources, store_rows: StoreRows) -> None:
    """Retention skips a locked job."""
    store_rows(1, old=3)
    with resources.engine.begin() as drain_of_another:
        drain_of_another.execute(text("SELECT 1 FROM training_jobs WHERE id = 1 FOR UPDATE"))
        assert RowRetention(resources.engine, LOGS).run(dry_run=False) == 0
    assert RowRetention(resources.engine, LOGS).run(dry_run=False) == 3


def test_a_young_row_before_an_old_one_keeps_it(resources: Resources, store_rows: StoreRows) -> None:
    """The remaining rows of a job have no gap."""
    store_rows(1, old=3)
    with resources.engine.begin() as connection:
        connection.execute(text("UPDATE training_logs SET created_at = now() WHERE seq = 2"))
    assert RowRetention(resources.engine, LOGS).run(dry_run=False) == 1
    assert contents(resources.engine) == ["old 1", "old 2"]


def test_a_replay_of_removed_rows_ends(resources: Resources, store_rows: StoreRows) -> None:
    """A sink whose cursor was moved back behind removed rows gets the remaining ones, and is up to date."""
    store_rows(1, old=3, new=2)
    with LokiTwin() as loki:
        sink = LokiSink(LokiHttp(loki.url))
        delivery = Delivery(resources.engine, LogBacklog(resources.engine, "loki"), sink, slice_s=60)
        delivery.run()
        assert RowRetention(resources.engine, LOGS_IN_LOKI).run(dry_run=False) == 3
        with resources.engine.begin() as connection:
            replay_rows(connection, "loki", 1, 1)
        assert not delivery.run().more
    confirmed = text("SELECT confirmed_seq FROM delivery_cursors")
    with resources.engine.connect() as connection:
        assert connection.execute(confirmed).scalar_one() == 5


def test_nothing_is_removed_unless_it_is_asked_for(resources: Resources) -> None:
    """Retention needs its settings, a first dry run, and confirmations of every sink in use."""
    urls = {"database_url": resources.settings.database_url, "redis_url": resources.settings.redis_url}
    assert row_policies(load_settings(**urls)) == []
    wanted = load_settings(**urls, log_retention_days=7, metric_retention_days=9, mlflow_tracking_uri="http://m:1")
    assert wanted.row_retention == "dry-run"
    assert [(each.days, each.sinks) for each in row_policies(wanted)] == [(7, ("loki",)), (9, ("mlflow",))]
    assert row_policies(load_settings(**urls, log_retention_days=7, loki_enabled=False))[0].sinks == ()
