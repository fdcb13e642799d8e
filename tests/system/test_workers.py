"""Real worker processes lose and duplicate no message when they, Redis or Postgres are killed."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
import sqlalchemy
from sqlalchemy import Engine, text

from tests.factories import Sender, drain, logs
from tests.processes import START_TIMEOUT_S, WAIT_S, Process, kill_one, wait_until, workers_running
from trainwire.schemas.keys import BEAT_QUEUE, DEFAULT_SHARDS, HOLD_KEY, acks_key, shard_of, stream_key
from trainwire.schemas.migrations import upgrade
from trainwire.stack.postgres import EmbeddedPostgres
from trainwire.stack.valkey import EmbeddedValkey
from trainwire.stores.postgres.connections import open_engine, open_redis
from trainwire.workers.drain import store
from trainwire.workers.resources import Resources
from trainwire.workers.settings import load_settings
from trainwire.workers.streams.sweep import publish_hold

COUNT = text("SELECT count(*) FROM training_logs")
DISTINCT = text("SELECT count(DISTINCT (job_id, content)) FROM training_logs")


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A Postgres that this test may damage."""
    with EmbeddedPostgres(tmp_path / "stores") as server:
        engine = sqlalchemy.create_engine(server.url.replace("postgresql:", "postgresql+psycopg:"))
        with engine.begin() as connection:
            upgrade(connection)
        engine.dispose()
        yield server


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    """A Redis that this test may damage; every write is synced to disk before it is confirmed."""
    with EmbeddedValkey(tmp_path / "stores", maxmemory="64mb", settings={"appendfsync": "always"}) as server:
        yield server


@pytest.fixture
def own(postgres: EmbeddedPostgres, valkey: EmbeddedValkey) -> Iterator[Resources]:
    """Connections to the servers of this test."""
    settings = load_settings(database_url=postgres.url, redis_url=valkey.url)
    resources = Resources(settings, open_engine(settings), open_redis(settings))
    yield resources
    resources.engine.dispose()
    resources.redis.close()


def count(engine: Engine, statement: sqlalchemy.TextClause = COUNT) -> int:
    """Return the number of log rows, or -1 while Postgres does not answer."""
    try:
        with engine.connect() as connection:
            return int(connection.execute(statement).scalar_one())
    except sqlalchemy.exc.OperationalError:
        return -1


def has_rows(engine: Engine, expected: int) -> bool:
    """Return whether there are exactly this many log rows."""
    return count(engine) == expected


def is_acked(sender: Sender, job: int, seq: int) -> bool:
    """Return whether the messages of the job's trainer up to `seq` are acknowledged."""
    return sender.client.hget(acks_key(job), "0-test:logs") == str(seq).encode()


def publish_patiently(sender: Sender, line: str, job: int, seq: int) -> None:
    """Publish like a trainer: retry with the same number until Redis has confirmed it."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            sender.send(logs(line), job=job, seq=seq)
        except redis.RedisError:
            assert time.monotonic() < deadline
        else:
            return


@pytest.mark.parametrize("beat", [True, False])
def test_a_message_is_stored_within_seconds(
    resources: Resources, sender: Sender, tmp_path: Path, beat: bool
) -> None:
    """A worker notices a message of a bare XADD, also without beat."""
    with workers_running(resources.settings, tmp_path, beat=beat):
        sender.send(logs("a"))
        wait_until(lambda: count(resources.engine) == 1, "the row")
        wait_until(lambda: sender.client.hget(acks_key(1), "0-test:logs") == b"1", "the ack")


def test_workers_killed_at_random_moments_lose_and_double_nothing(
    resources: Resources, sender: Sender, tmp_path: Path
) -> None:
    """After twelve SIGKILLs of workers or pool processes while 60,000 lines are drained, each is stored once."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    jobs, messages = (1, 2, 3), 400
    with workers_running(resources.settings, tmp_path, workers=2) as workers:
        for number in range(messages):
            for job in jobs:
                sender.send(logs(*(f"{number}.{n}" for n in range(50))), job=job)
            if number % (messages // 12) == 5:
                wait_until(lambda: count(resources.engine) > 0, "first rows")
                time.sleep(chance.uniform(0, 0.1))
                kill_one(workers, chance)
        expected = len(jobs) * messages * 50
        wait_until(lambda: count(resources.engine) >= expected, f"{expected} rows", 240)
        for job in jobs:
            wait_until(partial(is_acked, sender, job, messages), f"the acks of job {job}", 120)
    assert count(resources.engine) == count(resources.engine, DISTINCT) == expected
    in_order = text("SELECT content FROM training_logs WHERE job_id = 2 ORDER BY seq")
    with resources.engine.connect() as connection:
        lines = list(connection.execute(in_order).scalars())
    assert lines == [f"{number}.{n}" for number in range(messages) for n in range(50)]


def test_the_lease_of_a_killed_worker_is_free_at_once(
    resources: Resources, sender: Sender, tmp_path: Path
) -> None:
    """After a worker was killed inside its transaction, the next drain takes the lease, which has no expiry."""
    with workers_running(resources.settings, tmp_path, beat=False) as (worker,):
        # The drain has to wait for this job's row, so that it is surely in its transaction when it dies.
        with resources.engine.connect() as blocker:
            blocker.execute(text("INSERT INTO training_jobs (id) VALUES (1)"))
            sender.send(logs("before"))
            waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            wait_until(lambda: count(resources.engine, waiting) == 1, "the drain's transaction")
            assert drain(resources).leased_elsewhere
            worker.kill()
            blocker.rollback()
        wait_until(lambda: drain(resources).stored == 1, "the next drain")
    assert count(resources.engine) == 1


def test_redis_restarted_twenty_times_under_a_worker(
    own: Resources, valkey: EmbeddedValkey, tmp_path: Path
) -> None:
    """After each of twenty restarts of Redis the same worker and beat continue by themselves."""
    sender = Sender(own.redis)
    with workers_running(own.settings, tmp_path) as (worker,):
        pid = worker.process.pid
        for turn in range(1, 21):
            valkey.kill() if turn % 2 else valkey.stop()
            valkey.start()
            publish_patiently(sender, f"after restart {turn}", job=1, seq=turn)
            wait_until(partial(has_rows, own.engine, turn), f"row {turn}")
        assert worker.process.poll() is None
        assert worker.process.pid == pid


def test_postgres_restarted_twenty_times_under_a_worker(
    own: Resources, postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    """After each of twenty restarts of Postgres, killed or stopped, the same worker continues by itself."""
    sender = Sender(own.redis)
    with workers_running(own.settings, tmp_path) as (worker,):
        for turn in range(1, 21):
            publish_patiently(sender, f"before restart {turn}", job=1, seq=2 * turn - 1)
            postgres.kill() if turn % 2 else postgres.stop()
            publish_patiently(sender, f"during restart {turn}", job=1, seq=2 * turn)
            postgres.start()
            wait_until(partial(has_rows, own.engine, 2 * turn), f"row {2 * turn}")
        assert worker.process.poll() is None
    assert count(own.engine, DISTINCT) == 40


def fill_to_the_brim(sender: Sender) -> int:
    """Publish 4 kB lines as job 1 until Redis accepts no more; return the number of accepted lines."""
    line = os.urandom(2000).hex()
    stream = stream_key("logs", shard_of(1, DEFAULT_SHARDS))

    def entry(number: int) -> dict[Any, Any]:
        fields = {"v": 1, "job": 1, "attempt": 1, "source": "0-test", "seq": number, "enc": "json"}
        return fields | {"body": f'{{"log_type":"stdout","lines":["{number} {line}"],"ts":[1]}}'}

    sent, client = 0, sender.client
    # Each write is synced to the disk, but once for many that come at once; the last tenth comes one by one.
    while (memory := client.info("memory"))["used_memory"] < 0.9 * memory["maxmemory"]:
        with client.pipeline(transaction=False) as several:
            for number in range(sent + 1, sent + 101):
                several.xadd(stream, entry(number))
            several.execute()
        sent += 100
    with suppress(redis.OutOfMemoryError):
        while True:
            client.xadd(stream, entry(sent + 1))
            sent += 1
    assert sent > 5000
    # Redis now refuses every write until a tenth of the streams has been drained.
    sender.client.config_set("maxmemory", int(sender.client.info("memory")["used_memory"] * 0.9))
    return sent


def test_a_redis_filled_to_the_brim_is_drained_empty(own: Resources, tmp_path: Path) -> None:
    """With a full Redis and noeviction, running workers drain without orders, and then everything works again."""
    sender = Sender(own.redis)
    with workers_running(own.settings, tmp_path) as (worker,):
        sender.send(logs("before the flood"), job=5)
        wait_until(lambda: count(own.engine) == 1, "the first row")
        with own.engine.begin() as holder:
            store.take_lease(holder, stream_key("logs", 1))
            sent = fill_to_the_brim(sender)
        wait_until(lambda: count(own.engine) == sent + 1, f"all {sent} rows", 240)
        wait_until(lambda: own.redis.xlen(stream_key("logs", 1)) == 0, "an empty stream")
        wait_until(lambda: not own.redis.exists(HOLD_KEY), "the end of the hold")
        sender.send(logs("after the flood"), seq=sent + 1)
        wait_until(lambda: count(own.engine) == sent + 2, "news after the flood", 120)
        assert worker.process.poll() is None
    assert count(own.engine, DISTINCT) == sent + 2


def test_beat_logs_a_full_redis_once(own: Resources, tmp_path: Path) -> None:
    """Ticks refused by a full Redis are logged once, without tracebacks; with free memory they are sent again."""
    beat = Process(own.settings, tmp_path / "beat.log", "beat").start()
    try:
        wait_until(lambda: own.redis.llen(BEAT_QUEUE), "the first ticks")
        fill_to_the_brim(Sender(own.redis))
        wait_until(lambda: "beat.unavailable" in beat.output, "beat's log line")
        own.redis.flushall()
        own.redis.config_set("maxmemory", 2**30)
        wait_until(lambda: own.redis.llen(BEAT_QUEUE) > 5, "ticks", 120)
        assert beat.output.count("beat.unavailable") <= 3
        assert "Traceback" not in beat.output
    finally:
        beat.stop()


def test_workers_that_start_on_a_full_redis_make_room_first(own: Resources, tmp_path: Path) -> None:
    """A worker that starts on a full Redis drains before Celery connects."""
    sender = Sender(own.redis)
    sent = fill_to_the_brim(sender)
    with workers_running(own.settings, tmp_path):
        wait_until(lambda: count(own.engine) == sent, f"all {sent} rows", 240)
        sender.send(logs("goes on"), seq=sent + 1)
        wait_until(lambda: count(own.engine) == sent + 1, "news")


def test_the_hold_is_set_above_the_high_water_mark(own: Resources) -> None:
    """The hold key exists above the mark, while no worker drains, and is removed below it."""
    publish_hold(own.redis, 0.75)
    assert not own.redis.exists(HOLD_KEY)
    for _ in range(13):
        own.redis.rpush("ballast", os.urandom(4 * 1024 * 1024))
    publish_hold(own.redis, 0.75)
    assert 0 < own.redis.ttl(HOLD_KEY) <= 10
    own.redis.delete("ballast")
    publish_hold(own.redis, 0.75)
    assert not own.redis.exists(HOLD_KEY)


def test_workers_refuse_a_database_of_another_revision(own: Resources, tmp_path: Path) -> None:
    """The worker exits with a non-zero code and an error that names the command to run."""
    with own.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'other'"))
    worker = Process(own.settings, tmp_path / "worker.log", "worker").start()
    assert worker.process.wait(START_TIMEOUT_S) == 78
    assert "at schema revision 'other'" in worker.output
    assert "run `trainwire migrate`" in worker.output
    assert "Traceback" not in worker.output


def test_pool_processes_do_not_outlive_their_worker(resources: Resources, tmp_path: Path) -> None:
    """A killed worker leaves no child process with a Postgres connection."""
    with workers_running(resources.settings, tmp_path, beat=False) as (worker,):
        children = psutil.Process(worker.process.pid).children(recursive=True)
        assert len(children) >= 2
        worker.kill()
        wait_until(lambda: not any(child.is_running() for child in children), "the end of the children")


def test_a_worker_that_receives_nothing_ends(resources: Resources, tmp_path: Path) -> None:
    """A worker that does not receive its own orders logs that and exits with 70.

    Until then it touches the file that health checks look at.
    """
    alive = tmp_path / "alive"
    settings = {"WORKER_DEAF_AFTER_S": "10", "ALIVE_FILE": str(alive)}
    worker = Process(resources.settings, tmp_path / "worker.log", "worker", **settings)
    worker.start()
    try:
        wait_until(alive.exists, "an order that comes back", START_TIMEOUT_S)
        # Celery's workers are known to live on and do nothing; these are made to by stopping their pool.
        for child in psutil.Process(worker.process.pid).children():
            child.suspend()
        wait_until(lambda: worker.process.poll() is not None, "the worker's end", 120)
    finally:
        worker.stop()
    assert worker.process.returncode == 70
    assert "worker.deaf" in worker.output


def test_a_worker_logs_its_settings_without_secrets(resources: Resources, tmp_path: Path) -> None:
    """The first log line of a worker has its settings, passwords masked."""
    with workers_running(resources.settings, tmp_path, beat=False) as (worker,):
        first = json.loads(worker.output.splitlines()[0])
        assert (first["event"], first["settings"]["ingest_shards"]) == ("process.starting", 4)
        password = resources.settings.sqlalchemy_url().password
        assert not isinstance(password, str) or password not in worker.output
