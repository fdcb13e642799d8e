"""Every line is stored exactly once while processes are killed, and stores flushed, filled or damaged.

`make chaos` runs it for ten minutes, CI for seconds. CHAOS_SEED repeats the order of the faults,
CHAOS_FAULTS chooses them by words of their names (tests/chaos/faults.py).
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Engine

from tests.chaos import checks
from tests.chaos.faults import LOST_AFTER_S, chosen, inject_until
from tests.chaos.killed_trainers import KilledTrainers
from tests.chaos.spool_damage import SpoolDamage
from tests.chaos.trainer import TIMING
from tests.chaos.world import World
from tests.factories import rows
from tests.followers import Follower
from tests.integration.gateway.feed_clients import EventSource, GatewayProcess, WebSocketClient
from tests.processes import ROOT, Process, wait_until, workers_running
from trainwire.ingest.sending.recovery import send_leftovers
from trainwire.schemas.migrations import upgrade
from trainwire.schemas.tables import training_jobs
from trainwire.stack.postgres import EmbeddedPostgres
from trainwire.stack.valkey import EmbeddedValkey
from trainwire.stores.postgres.connections import open_engine
from trainwire.workers.settings import Settings, load_settings

SECONDS = float(os.environ.get("CHAOS_SECONDS", "20"))
SEED = int(os.environ.get("CHAOS_SEED", str(random.SystemRandom().randrange(10**6))))
FAULTS = os.environ.get("CHAOS_FAULTS", "")
JOBS = range(1, 7)


@pytest.mark.chaos
@pytest.mark.timeout(SECONDS + 400)
def test_every_line_survives_every_fault(tmp_path: Path) -> None:
    """Six trainers publish while workers, Redis, Postgres and other trainers are killed or damaged at random."""
    print(f"\nCHAOS_SEED={SEED} CHAOS_SECONDS={SECONDS:.0f}")
    with (
        EmbeddedPostgres(tmp_path / "stores") as postgres,
        EmbeddedValkey(tmp_path / "stores") as valkey,
        GatewayProcess(tmp_path, migrated(postgres.url), valkey.url) as gateway,
    ):
        settings = load_settings(database_url=postgres.url, redis_url=valkey.url)
        engine = open_engine(settings)
        chance = random.Random(SEED)
        killed_trainers = KilledTrainers(tmp_path, valkey.url, SECONDS + 100)
        damage = SpoolDamage(tmp_path / "spool", chance)
        with celery_running(settings, tmp_path) as (workers, beat):
            trainers = [start_trainer(job, valkey.url) for job in JOBS]
            killed_trainers.start_next()
            with following(engine, gateway) as followers:
                world = World(postgres, valkey, workers, beat, gateway, trainers, killed_trainers, damage, chance)
                injected = Counter(inject_until(world, time.monotonic() + SECONDS, chosen(FAULTS)))
                print(
                    f"  {injected.total()} faults: "
                    + ", ".join(f"{count} x {name}" for name, count in injected.items())
                )
                killed_trainers.kill()
                counts = {job: finished(trainer) for job, trainer in zip(JOBS, trainers, strict=True)}
                send_leftover_messages(tmp_path / "spool", valkey.url)
                check_followers(engine, followers)
            killed = {job for job, _ in killed_trainers.certain_lines}
            checks.check_lost(engine, killed)
            sums = checks.read_sums(engine, gateway)
        stored = checks.read_stored(engine, damage.destroyed)
        checks.check_living(engine, stored, counts)
        checks.check_killed(stored, killed_trainers.certain_lines)
        assert counts.keys() <= sums.keys() <= counts.keys() | killed
        checks.check_sums(engine, sums, stored, counts.keys())
        engine.dispose()


@contextmanager
def celery_running(settings: Settings, folder: Path) -> Iterator[tuple[list[Process], Process]]:
    """Run two workers and a beat."""
    beat = Process(settings, folder / "beat.log", "beat")
    with workers_running(settings, folder, workers=2, beat=False, LOST_AFTER_S=str(LOST_AFTER_S)) as workers:
        try:
            yield workers, beat.start()
        finally:
            beat.stop()


@contextmanager
def following(engine: Engine, gateway: GatewayProcess) -> Iterator[dict[int, Follower]]:
    """Follow two jobs as browsers do, once they exist."""
    kinds: dict[int, type[WebSocketClient | EventSource]] = {1: WebSocketClient, 2: EventSource}
    wait_until(
        lambda: kinds.keys() <= set(rows(engine, training_jobs, "id", order=["id"])), "the jobs' first rows"
    )
    followers = {job: Follower(kind, job, [gateway]) for job, kind in kinds.items()}
    try:
        yield followers
    finally:
        for follower in followers.values():
            follower.close()


def check_followers(engine: Engine, followers: dict[int, Follower]) -> None:
    """Wait until the clients have every row; they raise an error for a gap or a repeated row."""
    last_seqs = {job: last for job, *last in rows(engine, training_jobs, "id", *LAST_SEQS, order=["id"])}
    for job, follower in followers.items():
        for kind, last in zip(("logs", "metrics"), last_seqs[job], strict=True):
            wait_until(partial(follower.has, kind, last), f"{last} {kind} of job {job}", 60)
    moves = sum(follower.moves for follower in followers.values())
    print(f"  {len(followers)} browsers reconnected {moves} times: no hole, no row twice")


LAST_SEQS = ("last_log_seq", "last_metric_seq")


def send_leftover_messages(spool: Path, redis_url: str) -> None:
    """Send the messages that killed trainers have left; the spool is empty afterwards."""
    for leftover in send_leftovers(spool, redis_url, TIMING, 60):
        assert leftover.is_done
    assert not list(spool.glob("*/source.json"))


def migrated(url: str) -> str:
    """Create the tables; return the address of the database."""
    engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        upgrade(connection)
    engine.dispose()
    return url


def start_trainer(job: int, redis_url: str) -> subprocess.Popen[str]:
    """Start a trainer that publishes continuously."""
    command = [sys.executable, "-m", "tests.chaos.trainer", str(job), str(SECONDS), redis_url]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def finished(trainer: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for the trainer to end, and return the counts that it printed."""
    output, _ = trainer.communicate(timeout=200)
    counts: dict[str, Any] = json.loads(output)
    return counts
