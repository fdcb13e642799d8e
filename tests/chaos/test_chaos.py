"""Trouble without end: whatever is killed, flushed, filled or restarted, every line is stored exactly once.

`make chaos` runs it for ten minutes, CI for seconds. CHAOS_SEED repeats the order of the blows.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Engine

from ingest.leftovers import send_leftovers
from schemas.migrations import upgrade
from schemas.tables import training_jobs, training_logs, training_metrics
from stores.completeness import Completeness
from stores.connections import open_engine
from stores.jobs import find_jobs
from stores.positions import find_completeness
from tests.chaos.blows import World
from tests.chaos.mortals import Mortals
from tests.chaos.trainer import CHILD_LINES, TIMING
from tests.factories import rows
from tests.processes import ROOT, workers_running
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
            time.sleep(2)  # until all handle the signals that turn their clocks
            strike(World(postgres, valkey, workers, trainers, mortals, chance))
            mortals.kill()
            said = {job: finished(trainer) for job, trainer in zip(JOBS, trainers, strict=True)}
            send_what_is_left(tmp_path / "spool", valkey.url)
        engine = open_engine(settings)
        check_the_sums(engine, said.keys(), {job for job, _ in mortals.surely_said})
        check_the_living(engine, said)
        check_the_killed(engine, mortals.surely_said)
        engine.dispose()


def strike(world: World) -> None:
    """Let one blow follow the other until the time is over."""
    struck: Counter[str] = Counter()
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends:
        time.sleep(world.chance.uniform(0.5, 3))
        name, blow = world.chance.choice(world.blows())
        print(f"  {ends - time.monotonic():5.1f} s left: {name}", flush=True)
        struck[name] += 1
        blow()
        world.revive()
    print(f"  {sum(struck.values())} blows: " + ", ".join(f"{count} x {name}" for name, count in struck.items()))


def send_what_is_left(spool: Path, redis_url: str) -> None:
    """Send what killed trainers have left; nothing is left after that."""
    for leftover in send_leftovers(spool, redis_url, TIMING, 60):
        assert leftover.is_done
    assert not list(spool.glob("*/source.json"))


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


def finished(trainer: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for a trainer's end; return what it said."""
    output, _ = trainer.communicate(timeout=200)
    said: dict[str, Any] = json.loads(output)
    return said


def check_the_living(engine: Engine, said: dict[int, dict[str, Any]]) -> None:
    """Compare what the trainers and their children said with what Postgres holds."""
    assert {job: numbers["complete"] for job, numbers in said.items()} == dict.fromkeys(said, True)
    statuses = dict(rows(engine, training_jobs, "id", "status", order=["id"]))
    assert {job: statuses.get(job) for job in said} == dict.fromkeys(said, "completed")
    stored = rows(engine, training_logs, "job_id", "content")
    for job, numbers in said.items():
        lines = [f"life 1 line {number}" for number in range(numbers["lines"])]
        for child, exit_code in enumerate(numbers["children"]):
            assert exit_code == 0
            lines += [f"child {child} line {number}" for number in range(CHILD_LINES)]
        assert Counter(content for job_id, content in stored if job_id == job) == Counter(lines)
    points = [point for point in rows(engine, training_metrics, "job_id", "step") if point[0] in said]
    assert len(points) == len(set(points)) == sum(numbers["points"] for numbers in said.values())
    print(f"  {sum(numbers['lines'] for numbers in said.values()):,} lines: none lost, none twice")


def check_the_killed(engine: Engine, surely_said: dict[tuple[int, int], int]) -> None:
    """Of a killed trainer everything is stored that it said three seconds before its end: once, without a gap."""
    stored = rows(engine, training_logs, "job_id", "content")
    for (job, life), surely in surely_said.items():
        prefix = f"life {life} line "
        lines = [content for job_id, content in stored if job_id == job and content.startswith(prefix)]
        numbers = sorted(int(line.removeprefix(prefix)) for line in lines)
        assert numbers == list(range(len(numbers)))
        assert len(numbers) >= surely
    print(f"  {len(surely_said)} killed trainers: {sum(surely_said.values()):,} lines surely said, all stored")


def check_the_sums(engine: Engine, living: Any, killed: set[int]) -> None:
    """Of every job: produced = stored + dead-lettered + spooled + dropped, where the last three are 0 here."""
    with engine.connect() as connection:
        sums = {job.id: find_completeness(connection, job) for job in find_jobs(connection, limit=10_000)}
    wrong = {job: found.line for job, found in sums.items() if not is_whole(found)}
    assert wrong == {}
    assert set(living) <= sums.keys()
    assert {sums[job].state for job in living} <= {"complete"}
    assert sums.keys() - set(living) <= killed
    print(f"  {len(sums)} jobs: {sum(found.produced for found in sums.values()):,} messages produced, all stored")


def is_whole(found: Completeness) -> bool:
    """Tell whether everything is stored that was produced, and every source has ended."""
    return not found.open_sources and not found.missing and found.produced == found.stored
