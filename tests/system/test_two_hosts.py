"""Two hosts with a worker, a beat and a gateway each, on one Redis and one Postgres; each is killed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.factories import rows
from tests.followers import Follower
from tests.hosts import Host
from tests.integration.gateway.feed_clients import EventSource, WebSocketClient
from tests.processes import wait_until
from tests.trainer_processes import check_command, check_postgres, ends_of, trainers_running
from tests.twins.loki import LokiTwin
from trainwire.schemas.tables import training_logs
from trainwire.stores.postgres.deliveries import job_deliveries
from trainwire.workers.resources import Resources

JOBS = (1, 2, 3)
A_WHILE = 300
"""The number of lines of each job."""


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
        print(*(host.output_tails() for host in both), sep="\n")
        raise
    finally:
        for host in both:
            host.stop()


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
        wait_until(partial(follower.has, "logs", wanted), "more lines", 120)


def test_either_host_may_die_in_the_middle(resources: Resources, hosts: list[Host], loki: LokiTwin) -> None:
    """The host with the active beat is killed, and after its return the other one: no line is lost or doubled."""
    first, second = hosts
    env = addresses(resources)
    with trainers_running(resources.engine, JOBS, env) as trainers, followers_of(hosts) as followers:
        for trainer in trainers.values():
            trainer.advance()
        let_more_arrive(followers)
        first.kill()
        let_more_arrive(followers)
        wait_until(lambda: second.has_active_beat, "the other beat")
        first.launch()
        first.await_ready()
        second.kill()
        let_more_arrive(followers)
        counts = ends_of(trainers)
        for job in JOBS:
            check_postgres(resources.engine, job, counts[job])
            check_loki(resources, loki, job)
        check_followers(followers, [counts[job] for _ in hosts for job in JOBS])
    for job in JOBS:
        check_command(job, env)


def check_loki(resources: Resources, loki: LokiTwin, job: int) -> None:
    """Loki has each line once, in order."""

    def is_delivered() -> bool:
        with resources.engine.connect() as connection:
            delivery, _ = job_deliveries(connection, job)["loki"]
        return delivery.confirmed_seq == delivery.last_seq

    wait_until(is_delivered, f"job {job} in Loki", 120)
    stored = [row[1] for row in rows(resources.engine, training_logs, "job_id", "content") if row[0] == job]
    assert [line.line for line in loki.lines(job)] == stored


def check_followers(followers: Sequence[Follower], counts: Sequence[dict[str, Any]]) -> None:
    """Each client has received each line and each point once, in order, and the end, and has reconnected."""
    for follower, own in zip(followers, counts, strict=True):
        wait_until(partial(follower.has, "logs", own["lines"]), "the last line")
        wait_until(partial(follower.has, "metrics", own["points"]), "the last point")
        wait_until(follower.has_seen_the_end, "the end of the job")
        assert follower.client.texts == [f"line {n}" for n in range(own["lines"])]
        assert follower.moves >= 1


def addresses(resources: Resources) -> dict[str, str]:
    """Return the environment that names the test servers."""
    urls = {"DATABASE_URL": resources.settings.database_url, "REDIS_URL": resources.settings.redis_url}
    return {name: url.get_secret_value() for name, url in urls.items()}
