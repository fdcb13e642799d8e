"""Trouble without end: whatever is killed, flushed or restarted, every line is stored exactly once.

`make chaos` runs it for ten minutes, CI for seconds. CHAOS_SEED repeats the order of the blows.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import redis
import sqlalchemy

from ingest.leftovers import send_leftovers
from schemas.migrations import upgrade
from schemas.tables import source_positions, training_jobs, training_logs, training_metrics
from stores.connections import open_engine
from tests.chaos.mortals import Mortals
from tests.chaos.trainer import TIMING
from tests.factories import rows
from tests.processes import ROOT, Process, wait_until, workers_running
from trainwire.postgres import EmbeddedPostgres
from trainwire.valkey import EmbeddedValkey
from workers.settings import load_settings

SECONDS = float(os.environ.get("CHAOS_SECONDS", "20"))
SEED = int(os.environ.get("CHAOS_SEED", str(random.SystemRandom().randrange(10**6))))
JOBS = range(1, 7)


@pytest.mark.chaos
@pytest.mark.timeout(SECONDS + 300)
def test_every_line_survives_every_blow(tmp_path: Path) -> None:
    """Six trainers publish while workers, Redis, Postgres and other trainers are killed at random, and worse."""
    print(f"\nCHAOS_SEED={SEED} CHAOS_SECONDS={SECONDS:.0f}")
    chance = random.Random(SEED)
    with (
        EmbeddedPostgres(tmp_path / "stores") as postgres,
        EmbeddedValkey(tmp_path / "stores") as valkey,
    ):
        migrate(postgres.url)
        settings = load_settings(database_url=postgres.url, redis_url=valkey.url)
        with workers_running(settings, tmp_path, workers=2) as workers:
            trainers = [start_trainer(job, valkey.url) for job in JOBS]
            mortals = Mortals(tmp_path, valkey.url, SECONDS + 100)
            mortals.kill_and_follow()
            ends = time.monotonic() + SECONDS
            while time.monotonic() < ends:
                time.sleep(chance.uniform(0.5, 3))
                name, blow = chance.choice(blows(postgres, valkey, workers, mortals, chance))
                print(f"  {ends - time.monotonic():5.1f} s left: {name}", flush=True)
                blow()
                revive(workers)
            mortals.kill()
            said = {job: finished(trainer) for job, trainer in zip(JOBS, trainers, strict=True)}
            send_what_is_left(tmp_path / "spool", valkey.url)
        engine = open_engine(settings)
        check(engine, said)
        check_the_killed(engine, mortals.surely_said)
        engine.dispose()


def send_what_is_left(spool: Path, redis_url: str) -> None:
    """Send what killed trainers have left; nothing is left after that."""
    for leftover in send_leftovers(spool, redis_url, TIMING, 60):
        assert leftover.is_done
    assert not list(spool.iterdir())


def blows(
    postgres: EmbeddedPostgres,
    valkey: EmbeddedValkey,
    workers: list[Process],
    mortals: Mortals,
    chance: random.Random,
) -> list[tuple[str, Callable[[], object]]]:
    """Return what may happen next."""
    victim = chance.choice(workers)

    def restart(server: EmbeddedPostgres | EmbeddedValkey, end: Callable[[], None]) -> None:
        end()
        time.sleep(chance.uniform(0, 1.5))
        server.start()

    return [
        ("worker killed", victim.kill),
        ("pool process killed", lambda: kill_a_child(victim, chance)),
        ("Redis killed", lambda: restart(valkey, valkey.kill)),
        ("Redis restarted", lambda: restart(valkey, valkey.stop)),
        ("Redis paused", lambda: pause(valkey, chance.uniform(0.5, 3))),
        ("trainer killed", mortals.kill_and_follow),
        ("Redis flushed", lambda: redis.Redis.from_url(valkey.url).flushall()),
        ("Postgres killed", lambda: restart(postgres, postgres.kill)),
        ("Postgres restarted", lambda: restart(postgres, postgres.stop)),
    ]


def pause(server: EmbeddedValkey, seconds: float) -> None:
    """Stop the server's process for a while: connections stay, nobody answers."""
    assert server.child.pid is not None
    process = psutil.Process(server.child.pid)
    process.suspend()
    time.sleep(seconds)
    process.resume()


def kill_a_child(worker: Process, chance: random.Random) -> None:
    """SIGKILL one pool process of a worker."""
    children = psutil.Process(worker.process.pid).children()
    if children:
        os.kill(chance.choice(children).pid, signal.SIGKILL)


def revive(workers: list[Process]) -> None:
    """Start again what has ended, as `trainwire up` does."""
    for worker in workers:
        if worker.process.poll() is not None:
            worker.start()


def migrate(url: str) -> None:
    """Make the tables."""
    engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        upgrade(connection)
    engine.dispose()


def start_trainer(job: int, redis_url: str) -> subprocess.Popen[str]:
    """Start a trainer that publishes all the time."""
    command = [sys.executable, "-m", "tests.chaos.trainer", str(job), str(SECONDS), redis_url]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def finished(trainer: subprocess.Popen[str]) -> dict[str, int]:
    """Wait for a trainer's end; return what it said."""
    output, _ = trainer.communicate(timeout=200)
    said: dict[str, int] = json.loads(output)
    return said


def check(engine: sqlalchemy.Engine, said: dict[int, dict[str, int]]) -> None:
    """Compare what the trainers said with what Postgres holds."""
    wait_until(
        lambda: rows(engine, training_jobs, "status", order=["id"])[: len(said)] == ["completed"] * len(said),
        "the completion of every job",
        timeout_s=60,
    )
    for job, numbers in said.items():
        lines = [content for job_id, content in rows(engine, training_logs, "job_id", "content") if job_id == job]
        assert sorted(lines, key=line_number) == [f"line {n}" for n in range(numbers["lines"])]
    points = [point for point in rows(engine, training_metrics, "job_id", "step") if point[0] in said]
    assert len(points) == len(set(points)) == sum(numbers["points"] for numbers in said.values())
    columns = ("job_id", "missing", "last_seq", "produced")
    for job, missing, last_seq, produced in rows(
        engine, source_positions, *columns, order=["job_id", "source", "kind"]
    ):
        assert missing == []
        assert last_seq == produced or job not in said
    assert all(numbers["complete"] for numbers in said.values())
    print(f"  {sum(numbers['lines'] for numbers in said.values()):,} lines: none lost, none twice")


def check_the_killed(engine: sqlalchemy.Engine, surely_said: dict[int, int]) -> None:
    """Of a killed trainer everything is stored that it said 200 ms before its end: once, without a gap."""
    stored = rows(engine, training_logs, "job_id", "content")
    for job, surely in surely_said.items():
        numbers = sorted(line_number(content) for job_id, content in stored if job_id == job)
        assert numbers == list(range(len(numbers)))
        assert len(numbers) >= surely
    print(f"  {len(surely_said)} killed trainers: {sum(surely_said.values()):,} lines surely said, all stored")


def line_number(line: str) -> int:
    """Return the number in a line."""
    return int(line.removeprefix("line "))
