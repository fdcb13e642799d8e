"""Deletion of jobs: store by store on real servers, killed in the middle, beside drains and deliveries."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, cast

import pytest
import sqlalchemy
from sqlalchemy import text

from tests.factories import NOW_NS, Sender, checkpoint, completion, drain, logs, metrics, one
from tests.integration.conftest import Bucket
from tests.mlflow_server import MlflowServer
from tests.processes import wait_until
from tests.twins.loki import Limits, LokiTwin
from trainwire.schemas.checkpoint_keys import new_upload_folder
from trainwire.schemas.events import TrainingDeleted, decode_event
from trainwire.schemas.keys import (
    JOB_DELETED_FIELD,
    JOBS_CHANNEL,
    ack_field,
    acks_key,
    alive_field,
    alive_key,
    callback_answer_key,
    callback_counters_key,
    claim_key,
    shard_of,
)
from trainwire.schemas.tables import deleted_jobs, ingest_cursors, metadata
from trainwire.stack.persisted_config import free_port
from trainwire.stores.files.s3 import open_s3
from trainwire.stores.loki.http import LokiHttp
from trainwire.stores.mlflow.runs import get_run
from trainwire.stores.postgres.deletion import (
    Choice,
    Deletion,
    NoSuchJob,
    StillAtWork,
    StillDeleting,
    begin_deletion,
    find_deletion,
    forget_deletion,
)
from trainwire.stores.postgres.deletion_plan import DERIVED, TABLES, plan_deletion
from trainwire.workers.operations.job_deletion import JobDeleter
from trainwire.workers.resources import Resources
from trainwire.workers.settings import load_settings
from trainwire.workers.sinks.base import SinkUnavailable
from trainwire.workers.sinks.deliver import Delivery
from trainwire.workers.sinks.loki.backlog import LogBacklog
from trainwire.workers.sinks.loki.sink import LokiSink
from trainwire.workers.sinks.mlflow.backlog import MetricBacklog
from trainwire.workers.sinks.mlflow.plugin import mlflow_api
from trainwire.workers.sinks.mlflow.sink import MlflowSink

OF_JOBS = [table for table in metadata.sorted_tables if "job_id" in table.c and table.name != "gateway_tokens"]


def without_loki(resources: Resources, **more: Any) -> Resources:
    """Return the same stores with other settings, by default without Loki."""
    known = resources.settings
    settings = load_settings(
        database_url=known.database_url.get_secret_value(),
        redis_url=known.redis_url.get_secret_value(),
        **{"loki_enabled": False} | more,
    )
    return replace(resources, settings=settings)


def bad_entry(job: int, seq: int) -> dict[str, str]:
    """Return an entry whose body cannot be decoded."""
    return {
        "v": "1",
        "job": str(job),
        "attempt": "1",
        "source": "0-bad",
        "seq": str(seq),
        "enc": "json",
        "body": "{",
    }


def leave_rows(resources: Resources, sender: Sender, job: int = 1, lines: int = 3) -> None:
    """Store rows of each kind and a dead letter of a job, and end it."""
    sender.send(logs(*(f"line {number}" for number in range(lines))), job=job)
    sender.send_raw("logs", job, bad_entry(job, 1))
    sender.send(metrics(loss=1.0), job=job)
    sender.send(checkpoint(f"/disk/{job}.pt"), job=job)
    sender.send(completion(), job=job)
    for kind in ("logs", "metrics", "checkpoints", "completions"):
        drain(resources, kind, job)


def delete(resources: Resources, job: int = 1, *, force: bool = False, **choice: Any) -> Deletion:
    """Delete a job as the command does, and return its tombstone."""
    begin(resources, job, force=force, **choice)
    assert JobDeleter(resources, open_s3).run(job, run_s=240)
    return tombstone(resources, job)


def begin(resources: Resources, job: int = 1, *, force: bool = False, **choice: Any) -> Deletion:
    """Write the tombstone."""
    with resources.engine.begin() as connection:
        return begin_deletion(connection, job, Choice(**choice), by="a test", force=force)


def tombstone(resources: Resources, job: int = 1) -> Deletion:
    """Return the tombstone of a job."""
    with resources.engine.begin() as connection:
        found = find_deletion(connection, job)
    assert found is not None
    return found


def rows_of(resources: Resources, job: int = 1) -> dict[str, int]:
    """Return how many rows each table has of a job, without the tombstone and without empty tables."""
    counts = {}
    with resources.engine.begin() as connection:
        for table in [*OF_JOBS, metadata.tables["training_jobs"]]:
            column = "id" if table.name == "training_jobs" else "job_id"
            found = text(f"SELECT count(*) FROM {table.name} WHERE {column} = :job")
            counts[table.name] = connection.execute(found, {"job": job}).scalar_one()
    return {name: count for name, count in counts.items() if count and name != "deleted_jobs"}


def has_row(resources: Resources, job: int) -> bool:
    """Return whether there is such a job."""
    return "training_jobs" in rows_of(resources, job)


def test_nothing_of_a_job_is_left_in_postgres_and_all_of_the_others(resources: Resources, sender: Sender) -> None:
    """Rows, positions, letters, cursors and attempts go, in small batches; another job keeps its own."""
    resources = without_loki(resources)
    leave_rows(resources, sender, 1)
    leave_rows(resources, sender, 5)
    others = rows_of(resources, 5)
    assert rows_of(resources, 1) == others
    with resources.engine.begin() as connection:
        plan = plan_deletion(connection, 1)
    assert plan is not None
    counted = {name: count for name, count in others.items() if name not in {"training_jobs", *DERIVED}}
    assert {name: count for name, count in plan.rows.items() if count} == counted
    begin(resources)
    assert JobDeleter(resources, open_s3, batch_rows=1).run(1, 240)
    assert rows_of(resources, 1) == {}
    assert rows_of(resources, 5) == others
    done = tombstone(resources)
    assert (done.is_complete, done.name, done.deleted_by) == (True, None, "a test")
    assert done.parts["postgres"].deleted == done.parts["postgres"].planned == sum(counted.values())


def test_every_table_that_names_a_job_is_known() -> None:
    """A new table with a job_id must be deleted with its job."""
    assert {table.name for table in OF_JOBS} == {*TABLES, "deleted_jobs"}


def test_messages_of_a_deleted_job_are_acked_and_not_stored(resources: Resources, sender: Sender) -> None:
    """Messages of a deleted job are acknowledged and counted, without a row or dead letter; others are stored."""
    resources = without_loki(resources)
    leave_rows(resources, sender, 1)
    delete(resources)
    sender.send(logs("late"), job=1)
    sender.send_raw("logs", 1, bad_entry(1, 2))
    sender.send(logs("of another"), job=5)
    drained = drain(resources)
    assert (drained.stored, drained.dead_lettered, drained.entries) == (1, 0, 3)
    assert rows_of(resources, 1) == {}
    acks = resources.redis.hgetall(acks_key(1))
    assert acks == {ack_field("0-test", "logs").encode(): b"2", ack_field("0-bad", "logs").encode(): b"2"} | {
        JOB_DELETED_FIELD.encode(): b"1"
    }
    assert tombstone(resources).discarded_messages == 2
    assert one(resources.engine, ingest_cursors, stream="ingest:{1}:logs")["discarded"] == 2
    assert resources.redis.xlen("ingest:{1}:logs") == 0


def test_a_full_batch_of_a_deleted_job_is_no_sign_of_a_bad_deploy(resources: Resources, sender: Sender) -> None:
    """A batch of hundreds of entries of deleted jobs does not halt the stream."""
    resources = without_loki(resources)
    leave_rows(resources, sender, 1)
    delete(resources)
    for _ in range(300):
        sender.send(logs("late"), job=1)
    assert drain(resources).entries == 300
    assert tombstone(resources).discarded_messages == 300


@pytest.mark.parametrize("status", ["pending", "running", "stalled"])
def test_a_job_at_work_is_deleted_by_force_only(resources: Resources, sender: Sender, status: str) -> None:
    """The deletion of a running job is refused with the remedy, and changes nothing."""
    resources = without_loki(resources)
    leave_rows(resources, sender)
    before = rows_of(resources)
    with resources.engine.begin() as connection:
        connection.execute(text("UPDATE training_jobs SET status = :status"), {"status": status})
    with pytest.raises(StillAtWork, match=f"job 1 is {status}: end its trainer first, or force the deletion"):
        begin(resources)
    assert rows_of(resources) == before
    assert delete(resources, force=True).is_complete


def test_an_unknown_job_gets_no_tombstone(resources: Resources) -> None:
    """The deletion of an unknown number fails, and does not block the number."""
    with pytest.raises(NoSuchJob, match="no job 7 in the database"):
        begin(resources, 7)
    with resources.engine.begin() as connection:
        assert find_deletion(connection, 7) is None


def test_killed_in_the_middle_the_next_run_goes_on(resources: Resources, sender: Sender) -> None:
    """After a kill at any batch the next run deletes the rest, and the counts are exact."""
    resources = without_loki(resources)
    leave_rows(resources, sender, lines=20)
    planned = begin(resources).parts["postgres"].planned

    class Killed(BaseException):
        """Simulates the death of the process."""

    for batches in range(1, 40):
        seen = 0

        def kill(_deletion: Deletion, last: int = 1 + batches % 3) -> None:
            nonlocal seen
            seen += 1
            if seen == last:
                raise Killed

        try:
            JobDeleter(resources, open_s3, batch_rows=2).run(1, 60, kill)
        except Killed:
            continue
        break
    assert batches > 5
    assert tombstone(resources).is_complete
    assert tombstone(resources).parts["postgres"].deleted == planned
    assert rows_of(resources) == {}


def test_a_short_time_slice_goes_on_at_once(resources: Resources, sender: Sender) -> None:
    """A run that is out of time is no failure: the next one is due at once and completes the deletion."""
    resources = without_loki(resources)
    leave_rows(resources, sender, lines=20)
    begin(resources)
    ticks = iter(range(10_000))
    deleter = JobDeleter(resources, open_s3, batch_rows=2, clock=lambda: float(next(ticks)))
    runs = 0
    while not tombstone(resources).is_finished:
        deleter.run_due(14)
        runs += 1
        assert tombstone(resources).attempts == 0
    assert runs > 1
    assert rows_of(resources) == {}


def test_of_two_processes_one_deletes(resources: Resources, sender: Sender) -> None:
    """A second process cannot delete a job that is locked by the first."""
    resources = without_loki(resources)
    leave_rows(resources, sender)
    begin(resources)
    others: list[bool] = []

    def look(_deletion: Deletion) -> None:
        others.append(JobDeleter(resources, open_s3).run(1, 240))

    assert JobDeleter(resources, open_s3).run(1, 60, look)
    assert set(others) == {False}


def test_a_drain_under_way_leaves_no_rows_behind(resources: Resources, sender: Sender) -> None:
    """With deletions and drains of one job at the same time, no row of it is left after the last drain."""
    resources = without_loki(resources)
    stop = threading.Event()

    def drain_on() -> None:
        while not stop.is_set():
            drain(resources)

    with ThreadPoolExecutor(1) as pool:
        draining = pool.submit(drain_on)
        try:
            for job in range(1, 161, 4):
                for _ in range(5):
                    sender.send(logs("a", "b"), job=job)
                wait_until(partial(has_row, resources, job), f"job {job}")
                begin(resources, job, force=True)
                sender.send(logs("late"), job=job)
                assert JobDeleter(resources, open_s3).run(job, run_s=240)
            wait_until(lambda: not resources.redis.xlen("ingest:{1}:logs"), "the last drain")
        finally:
            stop.set()
        draining.result()
    for job in range(1, 161, 4):
        assert rows_of(resources, job) == {}


def test_a_drain_that_waits_for_the_deletion_does_not_create_the_job_anew(
    resources: Resources, sender: Sender
) -> None:
    """A drain whose statement began before the tombstone's commit still finds the tombstone."""
    resources = without_loki(resources)
    leave_rows(resources, sender)
    sender.send(logs("late"), job=1)
    with resources.engine.begin() as connection:
        begin_deletion(connection, 1, Choice(), by="a test")
        thread = threading.Thread(target=drain, args=(resources,))
        thread.start()
        waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        with resources.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as other:
            wait_until(lambda: other.execute(waiting).scalar_one(), "the drain waits")
    thread.join()
    assert "training_jobs" not in rows_of(resources)
    assert tombstone(resources).discarded_messages == 1


def test_a_number_is_free_again_once_nothing_is_left(resources: Resources, sender: Sender) -> None:
    """The tombstone is removed on request, and only after the deletion is complete."""
    resources = without_loki(resources)
    leave_rows(resources, sender)
    begin(resources)
    with resources.engine.begin() as connection, pytest.raises(StillDeleting, match="not deleted completely"):
        forget_deletion(connection, 1)
    JobDeleter(resources, open_s3).run(1, 240)
    with resources.engine.begin() as connection:
        forget_deletion(connection, 1)
    with resources.engine.begin() as connection, pytest.raises(NoSuchJob, match="job 1 was not deleted"):
        forget_deletion(connection, 1)
    sender.send(logs("anew"), job=1, source="0-new", seq=1)
    drain(resources)
    assert rows_of(resources)["training_logs"] == 1


def test_redis_keeps_only_why_nothing_is_stored(resources: Resources, sender: Sender) -> None:
    """Acks, heartbeats, claims, counters and keys of the job are deleted, not those of job 10."""
    resources = without_loki(resources)
    leave_rows(resources, sender, 1)
    client = resources.redis
    for job in (1, 10):
        shard = shard_of(job, 4)
        client.hset(alive_key(shard), alive_field(job, "0-a"), b"beat")
        client.set(claim_key(job, 1, 0, ""), b"beat")
        client.hset(callback_counters_key(shard, job, 1), "source", "x")
        client.set(callback_answer_key(shard, job, "abc"), b"x")
        client.hset(acks_key(job), "old", 1)
    heard: Any
    with cast("Any", client).pubsub(ignore_subscribe_messages=True) as heard:
        heard.subscribe(JOBS_CHANNEL)
        heard.get_message(timeout=60)
        delete(resources)
        message = heard.get_message(timeout=60)
    assert message is not None
    assert decode_event(message["data"]) == TrainingDeleted(job_id=1, attempt=1)
    left = {key.decode() for key in client.scan_iter()}
    assert {key for key in left if ":1:" in key.replace(":10:1", "") or key.endswith("acks:1")} == {acks_key(1)}
    assert client.hgetall(acks_key(1)) == {JOB_DELETED_FIELD.encode(): b"1"}
    assert 0 < client.ttl(acks_key(1)) <= 7 * 24 * 3600
    assert {claim_key(10, 1, 0, ""), acks_key(10), callback_counters_key(2, 10, 1)} <= left
    assert client.hkeys(alive_key(1)) == []
    assert client.hkeys(alive_key(2)) == [alive_field(10, "0-a").encode()]


@pytest.fixture
def loki() -> Iterator[LokiTwin]:
    """A Loki whose delete API is on."""
    with LokiTwin(limits=Limits(deletion="filter-and-delete")) as twin:
        yield twin


def push(resources: Resources, loki: LokiTwin) -> None:
    """Deliver the waiting rows to Loki."""
    backlog = LogBacklog(resources.engine, "loki")
    Delivery(resources.engine, backlog, LokiSink(LokiHttp(loki.url)), slice_s=60).run()


def test_loki_is_asked_to_delete_the_lines(resources: Resources, sender: Sender, loki: LokiTwin) -> None:
    """The job's lines are deleted, another job's are kept; a note has the delay."""
    for job in (1, 5):
        sender.send(logs("a", "b", ts=time.time_ns() - 10**9), job=job)
        sender.send(completion(), job=job)
        for kind in ("logs", "completions"):
            drain(resources, kind, job)
    push(resources, loki)
    done = delete(without_loki(resources, loki_enabled=True, loki_url=loki.url))
    part = done.parts["loki"]
    assert (part.state, part.deleted, done.is_complete) == ("requested", 2, True)
    assert "within minutes" in part.notes[0]
    assert [line.labels["job_id"] for line in loki.lines()] == ["5", "5"]


@pytest.mark.parametrize(("deletion", "status"), [("off", 404), ("disabled", 403)])
def test_a_loki_without_its_delete_api_is_left(
    resources: Resources, sender: Sender, deletion: Any, status: int
) -> None:
    """A refusal is noted with the remedy, and retried on request only; then all lines are deleted."""
    with LokiTwin(limits=Limits(deletion=deletion)) as loki:
        sender.send(logs("a", ts=time.time_ns() - 10**9))
        drain(resources)
        push(resources, loki)
        configured = without_loki(resources, loki_enabled=True, loki_url=loki.url)
        done = delete(configured, force=True)
    part = done.parts["loki"]
    assert (part.state, part.deleted, done.is_finished, done.is_complete) == ("left", 0, True, False)
    assert f"Loki answered {status}" in part.notes[0]
    assert "retention_enabled: true" in part.notes[0]
    assert set(rows_of(resources)) == {"delivery_cursors"}
    with LokiTwin(limits=Limits(deletion="filter-and-delete")) as loki:
        done = delete(without_loki(resources, loki_enabled=True, loki_url=loki.url))
    assert (done.parts["loki"].state, done.is_complete) == ("requested", True)
    assert rows_of(resources) == {}


def test_a_loki_that_is_down_is_retried(resources: Resources, sender: Sender, loki: LokiTwin) -> None:
    """The rest is deleted at once; a worker asks Loki when it is back."""
    sender.send(logs("a", ts=time.time_ns() - 10**9))
    drain(resources)
    push(resources, loki)
    loki.stop()
    configured = without_loki(resources, loki_enabled=True, loki_url=loki.url)
    done = delete(configured, force=True)
    assert (done.parts["loki"].state, done.is_finished, done.attempts) == ("open", False, 1)
    assert "does not answer" in done.parts["loki"].notes[0]
    assert set(rows_of(resources)) == {"delivery_cursors"}
    loki.start()
    JobDeleter(configured, open_s3).run_due(240)
    assert not tombstone(resources).is_finished  # its time has not come
    with resources.engine.begin() as connection:
        connection.execute(sqlalchemy.update(deleted_jobs).values(next_attempt_at=sqlalchemy.func.now()))
    JobDeleter(configured, open_s3).run_due(240)
    assert tombstone(resources).is_complete
    assert rows_of(resources) == {}
    assert loki.lines(1) == []


def test_lines_of_the_future_wait(resources: Resources, sender: Sender, loki: LokiTwin) -> None:
    """Loki deletes the past only: lines of a trainer whose clock is ahead are deleted once they are the past."""
    sender.send(logs("ahead", ts=time.time_ns() + 300 * 10**9))
    drain(resources)
    push(resources, loki)
    done = delete(without_loki(resources, loki_enabled=True, loki_url=loki.url), force=True)
    assert (done.parts["loki"].state, done.is_finished) == ("open", False)
    assert "lines of the past only" in done.parts["loki"].notes[0]


def test_a_delivery_under_way_writes_no_cursor_of_a_deleted_job(resources: Resources, sender: Sender) -> None:
    """The deletion waits until the delivery has ended, and no other one begins."""
    configured = without_loki(resources)
    leave_rows(resources, sender)
    is_sending, may_end = threading.Event(), threading.Event()

    class SlowSink:
        name = "loki"

        def deliver(self, _job_id: int, _batch: Any) -> Iterator[Any]:
            is_sending.set()
            may_end.wait(120)
            yield from self._fail()

        def _fail(self) -> Iterator[Any]:
            raise SinkUnavailable("it hung")

    def deliver() -> None:
        with pytest.raises(SinkUnavailable):
            Delivery(resources.engine, LogBacklog(resources.engine, "loki"), SlowSink(), slice_s=1).run()

    sending = threading.Thread(target=deliver)
    sending.start()
    assert is_sending.wait(60)
    begin(resources)
    deleting = threading.Thread(target=JobDeleter(configured, open_s3).run, args=(1, 240))
    deleting.start()
    deleting.join(0.3)
    assert deleting.is_alive()
    may_end.set()
    sending.join()
    deleting.join()
    assert tombstone(resources).is_complete
    assert rows_of(resources) == {}


def test_runs_that_workers_made_are_deleted_in_mlflow(
    resources: Resources, sender: Sender, mlflow_server: MlflowServer
) -> None:
    """The run of each attempt, also one unknown to Postgres; another job's and the trainer's own stay."""
    configured = without_loki(resources, mlflow_tracking_uri=mlflow_server.url)
    api = mlflow_api(mlflow_server.url)
    for job, attempt in ((1, 1), (1, 2), (5, 1)):
        source = f"0-{attempt}"
        sender.send(metrics(ts=NOW_NS + attempt, loss=1.0), job=job, attempt=attempt, source=source)
        sender.send(completion(ts=NOW_NS + attempt), job=job, attempt=attempt, source=source)
        for kind in ("metrics", "completions"):
            drain(resources, kind, job)
        Delivery(resources.engine, MetricBacklog("mlflow", 0), MlflowSink(api, "deletions"), slice_s=60).run()
    with resources.engine.begin() as connection:
        runs = connection.execute(
            text("SELECT job_id, mirror_run_id FROM training_attempts ORDER BY job_id, attempt")
        ).all()
        created = connection.execute(text("SELECT created_at FROM training_jobs WHERE id = 1")).scalar_one()
        # Killed between the making of the run and the commit.
        connection.execute(
            text("UPDATE training_attempts SET mirror_run_id = NULL WHERE job_id = 1 AND attempt = 2")
        )
        own = api.post("runs/create", experiment_id="0", tags=[{"key": "job_id", "value": "1"}])["run"]["info"][
            "run_id"
        ]
        connection.execute(
            text("UPDATE training_attempts SET mlflow_run_id = :run WHERE job_id = 1 AND attempt = 2"),
            {"run": own},
        )
    assert created is not None
    done = delete(configured)
    part = done.parts["mlflow"]
    assert (part.state, part.deleted, done.is_complete) == ("done", 2, True)
    deleted = {run_id: get_run(api, run_id).is_deleted for _, run_id in runs}  # type: ignore[union-attr]
    assert list(deleted.values()) == [True, True, False]
    assert get_run(api, own).is_deleted is False  # type: ignore[union-attr]
    assert f"run {own} was made by the trainer itself: it stays" in part.notes
    assert any("mlflow gc" in note for note in part.notes)


def test_mlflow_may_be_kept_and_deleted_later(
    resources: Resources, sender: Sender, mlflow_server: MlflowServer
) -> None:
    """A run that was kept is found by its tags when the deletion is repeated without that option."""
    configured = without_loki(resources, mlflow_tracking_uri=mlflow_server.url)
    api = mlflow_api(mlflow_server.url)
    sender.send(metrics(loss=1.0))
    drain(resources, "metrics")
    Delivery(resources.engine, MetricBacklog("mlflow", 0), MlflowSink(api, "kept"), slice_s=60).run()
    with resources.engine.begin() as connection:
        run_id = connection.execute(text("SELECT mirror_run_id FROM training_attempts")).scalar_one()
    assert delete(configured, force=True, keep=frozenset({"mlflow"})).parts["mlflow"].state == "kept"
    assert get_run(api, run_id).is_deleted is False  # type: ignore[union-attr]
    assert delete(configured).parts["mlflow"].deleted == 1
    assert get_run(api, run_id).is_deleted is True  # type: ignore[union-attr]


def test_a_store_that_is_not_named_here_is_left_to_the_workers(resources: Resources, sender: Sender) -> None:
    """Without MLFLOW_TRACKING_URI a command leaves the part open, and a worker marks it as left."""
    configured = without_loki(resources)
    leave_rows(resources, sender)
    with resources.engine.begin() as connection:
        connection.execute(text("UPDATE training_attempts SET mirror_run_id = 'abc'"))
    begin(resources)
    JobDeleter(configured, open_s3, is_worker=False).run(1, 240)
    assert (tombstone(resources).parts["mlflow"].state, tombstone(resources).is_finished) == ("open", False)
    JobDeleter(configured, open_s3).run(1, 240)
    part = tombstone(resources).parts["mlflow"]
    assert (part.state, part.notes) == ("left", ["MLFLOW_TRACKING_URI is not set here"])
    assert set(rows_of(resources)) == {"training_attempts"}


@pytest.fixture
def record(resources: Resources, sender: Sender) -> Callable[..., None]:
    """Give a function that stores checkpoints of a job."""

    def record(*files: dict[str, Any], job: int = 1) -> None:
        for fields in files:
            sender.send(checkpoint(**{"kind": "epoch"} | fields), job=job)
        drain(resources, "checkpoints", job)

    return record


def with_files(resources: Resources, bucket: Bucket, **more: Any) -> Resources:
    """Return stores whose trainers upload to this bucket."""
    return without_loki(resources, trainwire_checkpoint_bucket=bucket.name, **more)


def test_files_stay_unless_they_are_wanted(resources: Resources, record: Any, bucket: Bucket) -> None:
    """Without the option the rows are deleted and the files are kept."""
    record(bucket.put("checkpoints/1/1/a.pt"))
    done = delete(with_files(resources, bucket), force=True)
    assert (done.parts["s3"].state, done.is_complete) == ("kept", True)
    assert bucket.has("checkpoints/1/1/a.pt")
    assert rows_of(resources) == {}


def test_files_and_folders_are_deleted(resources: Resources, record: Any, bucket: Bucket) -> None:
    """An overwritten file is deleted once, a folder with all files that its manifest lists."""
    files = [bucket.put("checkpoints/1/1/last.pt"), bucket.put("checkpoints/1/1/last.pt", b"newer")]
    files.append(bucket.put_folder("checkpoints/1/1/epoch-1/", a=b"1", b=b"2"))
    files.append(bucket.put("checkpoints/1/1/gone.pt"))
    record(*files)
    bucket.delete("checkpoints/1/1/gone.pt")
    stays = bucket.put("checkpoints/5/1/a.pt")
    record(stays, job=5)
    done = delete(with_files(resources, bucket), force=True, with_files=True)
    assert (done.parts["s3"].state, done.is_complete) == ("done", True)
    left = bucket.client.list_objects_v2(Bucket=bucket.name)["Contents"]
    assert [each["Key"] for each in left] == ["checkpoints/5/1/a.pt"]
    assert rows_of(resources) == {}
    assert rows_of(resources, 5)["training_checkpoints"] == 1


def test_uploads_that_were_never_recorded_are_deleted(resources: Resources, record: Any, bucket: Bucket) -> None:
    """Remains of killed uploads, also multipart ones, are deleted; files that another job names are kept."""

    def key(job: int = 1) -> str:
        return f"checkpoints/{job}/1/{new_upload_folder(NOW_NS)}/last/"

    killed, parts, used, foreign = key(), key(), key(), key(11)
    for folder in (killed, used, foreign):
        bucket.put_folder(folder, a=b"1", b=b"2")
    bucket.delete(f"{killed}manifest.json")
    bucket.client.create_multipart_upload(Bucket=bucket.name, Key=f"{parts}a")
    record(bucket.put_folder(key(), a=b"1"), bucket.put("checkpoints/1/1/old.pt"))
    record({"uri": f"s3://{bucket.name}/{used}"}, job=5)
    done = delete(with_files(resources, bucket), force=True, with_files=True)
    assert (done.parts["s3"].state, done.is_complete) == ("done", True)
    left = [each["Key"] for each in bucket.client.list_objects_v2(Bucket=bucket.name)["Contents"]]
    names = ("a", "b", "manifest.json")
    assert left == sorted(folder + name for folder in (used, foreign) for name in names)
    assert "Uploads" not in bucket.client.list_multipart_uploads(Bucket=bucket.name)
    assert done.parts["s3"].deleted == 4


def test_files_that_a_job_may_not_take_with_it_stay_and_are_named(
    resources: Resources, record: Any, bucket: Bucket
) -> None:
    """Files of another job, in another job's folder, on a disk, and invalid addresses are kept."""
    shared = bucket.put("checkpoints/1/1/shared.pt")
    folder = bucket.put_folder("checkpoints/1/1/both/", a=b"1")
    foreign = bucket.put("checkpoints/5/1/not-recorded-yet.pt")
    resumed = bucket.put("checkpoints/1/1/resumed.pt")
    record(shared, folder, foreign, resumed, {"uri": "/disk/a.pt"}, {"uri": "s3://"})
    record(shared, {"uri": f"{folder['uri']}a"}, job=5)
    with resources.engine.begin() as connection:
        connection.execute(
            text("UPDATE training_jobs SET params = CAST(:params AS jsonb) WHERE id = 5"),
            {"params": f'{{"init": "{resumed["uri"]}"}}'},
        )
    done = delete(with_files(resources, bucket), force=True, with_files=True)
    assert (done.parts["s3"].state, done.parts["s3"].deleted, done.is_complete) == ("done", 0, True)
    notes = "\n".join(done.parts["s3"].notes)
    for uri in (shared["uri"], folder["uri"], resumed["uri"]):
        assert f"{uri} is a checkpoint of another job too: it stays" in notes
    assert f"{foreign['uri']} lies in the folder of another job: it stays" in notes
    assert "/disk/a.pt is on the trainer's machine: it stays" in notes
    for key in (
        "1/1/shared.pt",
        "1/1/both/a",
        "1/1/both/manifest.json",
        "5/1/not-recorded-yet.pt",
        "1/1/resumed.pt",
    ):
        assert bucket.has(f"checkpoints/{key}")
    assert rows_of(resources) == {}


def test_files_that_nothing_allows_to_delete_are_left(resources: Resources, record: Any, bucket: Bucket) -> None:
    """Files outside the known folders, or forbidden by the store, are named with the remedy."""
    record(
        bucket.put("elsewhere/a.pt"), bucket.put("checkpoints/1/1/locked.pt"), bucket.put("checkpoints/1/1/b.pt")
    )
    bucket.forbid("checkpoints/1/1/locked", "s3:DeleteObject")
    configured = with_files(resources, bucket)
    done = delete(configured, force=True, with_files=True)
    part = done.parts["s3"]
    allowed_by_moto = not bucket.has("checkpoints/1/1/locked.pt")
    assert (part.state, done.is_finished, done.is_complete) == ("left", True, False)
    assert f"CHECKPOINT_LEND_ALSO=s3://{bucket.name}/" in "\n".join(part.notes)
    assert not bucket.has("checkpoints/1/1/b.pt")
    assert rows_of(resources) == {"training_checkpoints": 1 if allowed_by_moto else 2}
    bucket.allow()
    wider = with_files(resources, bucket, checkpoint_lend_also=f"s3://{bucket.name}/elsewhere/")
    done = delete(wider, with_files=True)
    assert (done.parts["s3"].state, done.is_complete) == ("done", True)
    assert not bucket.has("elsewhere/a.pt")
    assert rows_of(resources) == {}


def test_a_store_that_is_down_keeps_the_list_of_files(
    resources: Resources, record: Any, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows that name the files stay until the object store answers."""
    record(bucket.put("checkpoints/1/1/a.pt"))
    configured = with_files(resources, bucket)
    begin(resources, force=True, with_files=True)
    with monkeypatch.context() as away:
        away.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
        JobDeleter(configured, open_s3).run(1, 240)
    done = tombstone(resources)
    assert (done.parts["s3"].state, done.is_finished, done.attempts) == ("open", False, 1)
    assert done.next_attempt_at is not None
    assert done.next_attempt_at > done.deleted_at + timedelta(seconds=1)
    assert rows_of(resources) == {"training_checkpoints": 1}
    JobDeleter(configured, open_s3).run(1, 240)
    assert tombstone(resources).is_complete
    assert not bucket.has("checkpoints/1/1/a.pt")
