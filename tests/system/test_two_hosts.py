"""Two hosts with a worker, a beat and a gateway each, on one Redis and one Postgres; either dies in the middle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from schemas.tables import training_jobs, training_logs, training_metrics
from stores.deliveries import job_deliveries
from tests.factories import one, rows
from tests.followers import Follower
from tests.hosts import Host
from tests.integration.gateway.feed_clients import EventSource, WebSocketClient
from tests.processes import ROOT, wait_until
from tests.twins.loki import LokiTwin
from workers.resources import Resources

JOBS = (1, 2, 3)
A_WHILE = 300
"""Lines, of each job."""
TRAINER = """
import json, select, sys, time
from ingest import Run
run = Run(job_id=int(sys.argv[1]), name="two hosts")
said = 0
def say():
    global said
    run.log(f"line {said}")
    if said % 10 == 0:
        run.metric(step=said, loss=1 / (said + 1))
    said += 1
say()
sys.stdin.readline()
while not select.select([sys.stdin], [], [], 0.004)[0]:
    say()
receipt = run.finish(timeout_s=90)
print(json.dumps({"lines": said, "points": (said + 9) // 10, "complete": receipt.complete}))
"""
"""Says a line, and more from the first word on its stdin until the second."""


class Trainer:
    """A trainer in a process of its own."""

    def __init__(self, job_id: int, settings: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", TRAINER, str(job_id)],
            cwd=ROOT,
            env=os.environ | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self) -> None:
        """Let it begin, or end."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def said(self) -> dict[str, Any]:
        """Wait for its end; return what it says of itself."""
        output, _ = self.process.communicate(timeout=120)
        return dict(json.loads(output))

    def kill(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate(timeout=10)


@pytest.fixture
def loki() -> Iterator[LokiTwin]:
    """An empty Loki."""
    with LokiTwin() as twin:
        yield twin


@pytest.fixture
def hosts(resources: Resources, loki: LokiTwin, tmp_path: Path) -> Iterator[list[Host]]:
    """Two hosts on the test servers, the one with the active beat first."""
    env = {"LOKI_URL": loki.url, "DELIVERY_BACKOFF_CAP_S": "0.5"}
    both = [Host(name, tmp_path, resources.settings, **env) for name in ("left", "right")]
    try:
        for host in both:
            host.launch()
        for host in both:
            host.await_ready()
        wait_until(lambda: any(host.has_active_beat for host in both), "an active beat")
        yield sorted(both, key=lambda host: not host.has_active_beat)
    except BaseException:
        print(*(host.last_words() for host in both), sep="\n")
        raise
    finally:
        for host in both:
            host.stop()


@contextmanager
def trainers_running(resources: Resources) -> Iterator[list[Trainer]]:
    """Run a trainer for each job; each has said its first line, and waits."""
    redis_url = resources.settings.redis_url.get_secret_value()
    env = {"REDIS_URL": redis_url, "TRAINWIRE_SETTLE_S": "60"}  # a taken order that died is given again in seconds
    trainers = [Trainer(job, env) for job in JOBS]
    try:
        wait_until(lambda: len(rows(resources.engine, training_logs, "seq")) == len(JOBS), "the first lines")
        yield trainers
    finally:
        for trainer in trainers:
            trainer.kill()


@contextmanager
def followers_of(hosts: Sequence[Host]) -> Iterator[list[Follower]]:
    """Follow each job at each host's gateway, over WebSockets and server-sent events."""
    with ExitStack() as stack:
        followers = []
        for number, host in enumerate(hosts):
            gateways = [host.gateway, *(other.gateway for other in hosts if other is not host)]
            for job in JOBS:
                kind = EventSource if (job + number) % 2 else WebSocketClient
                followers.append(Follower(kind, job, gateways))
                stack.callback(followers[-1].close)
        yield followers


def let_more_arrive(followers: Sequence[Follower]) -> None:
    """Wait until every follower has some more lines."""
    for follower in followers:
        wanted = follower.client.have["logs"] + A_WHILE
        wait_until(partial(follower.has, "logs", wanted), "more lines", 60)


@pytest.mark.timeout(300)
def test_either_host_may_die_in_the_middle(resources: Resources, hosts: list[Host], loki: LokiTwin) -> None:
    """The host with the active beat is killed, then, that one back, the other: nothing lost, nothing twice."""
    first, second = hosts
    with trainers_running(resources) as trainers, followers_of(hosts) as followers:
        for trainer in trainers:
            trainer.tell()
        let_more_arrive(followers)
        first.kill()
        let_more_arrive(followers)
        wait_until(lambda: second.has_active_beat, "the other beat")
        first.launch()
        first.await_ready()
        second.kill()
        let_more_arrive(followers)
        for trainer in trainers:
            trainer.tell()
        said = {job: trainer.said() for job, trainer in zip(JOBS, trainers, strict=True)}
        assert {job: told["complete"] for job, told in said.items()} == dict.fromkeys(JOBS, True)
        for job in JOBS:
            check_postgres(resources, job, said[job])
            check_loki(resources, loki, job)
        check_followers(followers, [said[job] for _ in hosts for job in JOBS])
    for job in JOBS:
        check_command(resources, job)


def check_postgres(resources: Resources, job: int, said: dict[str, Any]) -> None:
    """Each line and each point is there once, in order, and the job has completed."""
    stored = {
        table: [row[1:] for row in rows(resources.engine, table, "job_id", "seq", column) if row[0] == job]
        for table, column in ((training_logs, "content"), (training_metrics, "step"))
    }
    assert stored[training_logs] == [(n + 1, f"line {n}") for n in range(said["lines"])]
    assert stored[training_metrics] == [(n + 1, 10 * n) for n in range(said["points"])]
    assert one(resources.engine, training_jobs, id=job)["status"] == "completed"


def check_loki(resources: Resources, loki: LokiTwin, job: int) -> None:
    """Loki has each line once, in order."""

    def is_delivered() -> bool:
        with resources.engine.connect() as connection:
            delivery, _ = job_deliveries(connection, job)["loki"]
        return delivery.confirmed_seq == delivery.last_seq

    wait_until(is_delivered, f"job {job} in Loki", 60)
    stored = [row[1] for row in rows(resources.engine, training_logs, "job_id", "content") if row[0] == job]
    assert [line.line for line in loki.lines(job)] == stored


def check_followers(followers: Sequence[Follower], said: Sequence[dict[str, Any]]) -> None:
    """Each client has seen each line and each point once, in order, and the end, and has moved."""
    for follower, told in zip(followers, said, strict=True):
        wait_until(partial(follower.has, "logs", told["lines"]), "the last line")
        wait_until(partial(follower.has, "metrics", told["points"]), "the last point")
        wait_until(follower.has_seen_the_end, "the end of the job")
        assert follower.client.texts == [f"line {n}" for n in range(told["lines"])]
        assert follower.moves >= 1


def check_command(resources: Resources, job: int) -> None:
    """`trainwire status` says that the job has completed and that all of it is there."""
    env = {"DATABASE_URL": resources.settings.database_url, "REDIS_URL": resources.settings.redis_url}
    shown = subprocess.run(
        [sys.executable, "-m", "trainwire", "status", str(job)],
        cwd=ROOT,
        env=os.environ | {name: url.get_secret_value() for name, url in env.items()},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert "completed, attempt 1" in shown
    assert "\ncomplete: " in shown
