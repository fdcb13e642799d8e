"""An audit: honest trainers beside hostile ones that have a trainer's password (deploy/users.acl.template).

`make hostile` runs it for ten minutes, CI for seconds. AUDIT_SEED repeats the attacks, AUDIT_LATE_S
allows rows to be later on a machine that has other work,
AUDIT_ATTACKERS=client or =entries runs one of the two hostile programs alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest
import redis
from sqlalchemy import Engine

from tests.chaos import audit
from tests.chaos.audit import EventWatch, Honest, RowWatch
from tests.chaos.test_chaos import migrated
from tests.processes import ROOT, Process, wait_until, workers_running
from trainwire.stack.persisted_config import usable_port
from trainwire.stack.postgres import EmbeddedPostgres
from trainwire.stack.valkey import binary
from trainwire.stores.postgres.completeness import assess
from trainwire.stores.postgres.connections import open_engine
from trainwire.stores.postgres.source_positions import find_positions
from trainwire.workers.settings import load_settings

SECONDS = float(os.environ.get("AUDIT_SECONDS", "20"))
SEED = int(os.environ.get("AUDIT_SEED", str(random.SystemRandom().randrange(10**6))))
ATTACKERS = os.environ.get("AUDIT_ATTACKERS", "")
LATE_S = float(os.environ.get("AUDIT_LATE_S", "10"))
TRAINERS: Final = {
    "quiet": (1, 0, 2.0),
    "busy": (2, 0, 0.005),
    "first-rank": (3, 0, 0.05),
    "second-rank": (3, 1, 0.05),
}
"""Token -> job, rank, pause after a line in seconds."""


@pytest.mark.chaos
@pytest.mark.timeout(SECONDS + 300)
def test_hostile_trainers_cost_the_honest_ones_nothing(tmp_path: Path) -> None:
    """No message of an honest trainer is lost, stored twice, forged or late while hostile clients attack."""
    print(f"\nAUDIT_SEED={SEED} AUDIT_SECONDS={SECONDS:.0f}")
    with ExitStack() as stack:
        postgres = stack.enter_context(EmbeddedPostgres(tmp_path / "stores"))
        port = stack.enter_context(redis_with_users(tmp_path))
        worker_url, trainer_url = (url_of(port, user) for user in ("worker", "trainer"))
        settings = load_settings(database_url=migrated(postgres.url), redis_url=worker_url)
        engine = open_engine(settings)
        stack.callback(engine.dispose)
        workers = stack.enter_context(workers_running(settings, tmp_path, workers=2))
        watched = stack.enter_context(watching(engine, worker_url))
        trainers = {token: start_honest(token, trainer_url) for token in TRAINERS}
        wait_until(lambda: have_rows(engine), "the honest trainers' first rows", 60)
        with attackers(trainer_url, tmp_path):
            reports = {token: finished(trainer) for token, trainer in trainers.items()}
        rows, events = watched
        rows.stop()
        events.stop()
        print(f"  {dict(events.received)} events")
        honest = [Honest(TRAINERS[token][0], token, counts["lines"]) for token, counts in reports.items()]
        sources = audit.sources_of(engine, honest)
        check_all(
            lambda: audit.check_rows(engine, honest, sources),
            lambda: audit.check_lateness(rows, sources, LATE_S),
            lambda: audit.check_events(engine, events, {one.job for one in honest}),
            lambda: check_sums(engine, set(sources.values())),
            lambda: check_ends(reports),
            lambda: check_processes(workers),
        )


@contextmanager
def watching(engine: Engine, redis_url: str) -> Iterator[tuple[RowWatch, EventWatch]]:
    """Watch the rows of the honest jobs and all events until the end of the block."""
    client = redis.Redis.from_url(redis_url)
    jobs = {job for job, *_ in TRAINERS.values()}
    rows, events = RowWatch(engine, jobs), EventWatch(engine, client, jobs)
    try:
        yield rows, events
    finally:
        rows.end()
        events.end()
        client.close()


def check_all(*checks: Callable[[], None]) -> None:
    """Run all checks, and fail with the messages of those that failed."""
    wrong = []
    for check in checks:
        try:
            check()
        except AssertionError as exc:
            wrong.append(str(exc))
    assert wrong == [], "\n\n".join(wrong)


def check_ends(reports: dict[str, dict[str, Any]]) -> None:
    """Each honest trainer got the acknowledgement of all of its messages in time."""
    assert {token: counts["complete"] for token, counts in reports.items()} == dict.fromkeys(TRAINERS, True), (
        reports
    )
    assert max(counts["finish_s"] for counts in reports.values()) <= LATE_S, reports


@contextmanager
def redis_with_users(folder: Path) -> Iterator[int]:
    """Run a Redis whose only users are those of the template; the password of each is its name."""
    template = (ROOT / "deploy" / "users.acl.template").read_text()
    users = re.sub(
        r"@(\w+)_SHA256@", lambda found: hashlib.sha256(found[1].lower().encode()).hexdigest(), template
    )
    (folder / "users.acl").write_text(users)
    port = usable_port(folder, "valkey")
    options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--aclfile", str(folder / "users.acl")]
    limits = ["--maxmemory", "1gb", "--maxmemory-policy", "noeviction", "--appendonly", "yes"]
    server = subprocess.Popen([str(binary()), *options, *limits], cwd=folder, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: answers(url_of(port, "worker")), "the server's start")
        yield port
    finally:
        server.terminate()
        server.wait(20)


def answers(url: str) -> bool:
    """Return whether a Redis takes commands."""
    try:
        return bool(redis.Redis.from_url(url).ping())
    except redis.ConnectionError:
        return False


def url_of(port: int, user: str) -> str:
    """Return the address of Redis for a user."""
    return f"redis://{user}:{user}@127.0.0.1:{port}/0"


def start_honest(token: str, redis_url: str) -> subprocess.Popen[str]:
    """Start an honest trainer."""
    job, rank, pause_s = TRAINERS[token]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.honest_trainer", str(job), token, str(SECONDS), str(pause_s)],
        cwd=ROOT,
        env=os.environ
        | {
            "REDIS_URL": redis_url,
            "RANK": str(rank),
            "WORLD_SIZE": "2" if job == 3 else "1",
            "TRAINWIRE_SETTLE_S": "30",
        },
        stdout=subprocess.PIPE,
        text=True,
    )


def finished(trainer: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for the trainer to end, and return the counts that it printed."""
    output, _ = trainer.communicate(timeout=SECONDS + 120)
    counts: dict[str, Any] = json.loads(output)
    return counts


@contextmanager
def attackers(url: str, folder: Path) -> Iterator[None]:
    """Run the hostile clients until the end of the block, and print their output."""
    seconds, seed = str(SECONDS + 200), str(SEED)
    commands = {
        "hostile_client": ["tests.hostile_client", url, "--seconds", seconds, "--seed", seed],
        "hostile_entries": ["tests.chaos.hostile_entries", url, seconds, seed, "2"],
    }
    running = {}
    for name, command in commands.items():
        if ATTACKERS not in name:
            continue
        with (folder / f"{name}.log").open("wb") as log:
            running[name] = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, stdout=log, stderr=log)
    try:
        yield
        for name, process in running.items():
            assert process.poll() is None, (folder / f"{name}.log").read_text()[-2000:]
    finally:
        for name, process in running.items():
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait(10)
            print(f"  {name}: {(folder / f'{name}.log').read_text()[-1000:].strip()}")


def have_rows(engine: Engine) -> bool:
    """Return whether each honest trainer has a row."""
    with engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT count(DISTINCT source) FROM training_logs").scalar_one()
    return bool(found == len(TRAINERS))


def check_processes(workers: list[Process]) -> None:
    """No worker has ended."""
    assert [worker.process.poll() for worker in workers] == [None] * len(workers)


def check_sums(engine: Engine, sources: set[str]) -> None:
    """The sum of the honest sources is complete."""
    with engine.connect() as connection:
        for job in {job for job, *_ in TRAINERS.values()}:
            positions = [row for row in find_positions(connection, job) if row.source in sources]
            found = assess(positions, max(row.attempt for row in positions), "completed")
            assert (found.state, found.produced) == ("complete", found.stored), found.line
