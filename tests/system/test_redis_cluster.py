"""The streams on a Redis Cluster, the broker on another Redis: a server of the cluster dies and returns."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import redis
import requests

from tests.factories import Sender, logs, rows
from tests.integration.gateway.feed_clients import GatewayProcess
from tests.processes import server_variables, wait_until, workers_running
from tests.trainer_processes import (
    check_command,
    check_postgres,
    ends_of,
    let_more_arrive,
    lines_by_job,
    trainers_running,
)
from tests.valkey_cluster import ValkeyCluster
from trainwire.schemas.keys import KINDS, shard_of, stream_key
from trainwire.schemas.tables import training_logs
from trainwire.workers.resources import Resources

SHARDS = 4
JOBS = (1, 2, 3, 4)
"""One job of each shard; their streams are on all three servers."""
VICTIM = 1
"""The server with the streams of jobs 1 and 2."""
UNHURT = 4
"""The job with nothing on the victim: no stream, ack or claim, and no key that all trainers read."""
ELSEWHERE = 8
"""A job of the same shard."""
CALLED = 5
POOL = 2
"""The number of pool processes of a worker."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ValkeyCluster]:
    """A cluster that this test may damage."""
    with ValkeyCluster(tmp_path / "cluster") as cluster:
        yield cluster


def test_a_server_of_the_cluster_dies_and_comes_back(
    resources: Resources, cluster: ValkeyCluster, tmp_path: Path
) -> None:
    """After a kill and a restart from its append-only file nothing is lost or doubled; others are not delayed."""
    settings = resources.settings
    env = {
        **server_variables(settings),
        "STREAMS_URL": cluster.url,
    }
    with (
        workers_running(settings, tmp_path, workers=2, STREAMS_URL=cluster.url) as workers,
        trainers_running(resources.engine, JOBS, env) as trainers,
    ):
        for trainer in trainers.values():
            trainer.advance()
        let_more_arrive(resources.engine, *JOBS)
        cluster.nodes[VICTIM].kill()
        wait_until(cluster.misses_slots, "the others to find out")
        let_more_arrive(resources.engine, UNHURT)
        with cluster.client() as client:
            Sender(client).send(logs("nobody rings for this"), job=ELSEWHERE)
        wait_until(lambda: lines_by_job(resources.engine)[ELSEWHERE], "what beat alone has noticed")
        cluster.nodes[VICTIM].start()
        let_more_arrive(resources.engine, *JOBS)
        counts = ends_of(trainers)
        for job in JOBS:
            check_postgres(resources.engine, job, counts[job])
            check_command(job, env)
        wait_until(partial(are_empty, cluster), "empty streams")
        notes = [line for worker in workers for line in worker.output.splitlines() if "sweep.server_away" in line]
        assert 1 <= len(notes) <= len(workers) * POOL, "each pool process logs an unavailable server once"
    assert not resources.redis.keys("ingest:*"), "nothing of the streams is at the broker"


def are_empty(cluster: ValkeyCluster) -> bool:
    """Return whether all streams have been trimmed."""
    with cluster.client() as client:
        return not any(client.xlen(stream_key(kind, shard)) for kind in KINDS for shard in range(SHARDS))


def test_callbacks_over_http_go_to_the_cluster(
    resources: Resources, cluster: ValkeyCluster, tmp_path: Path
) -> None:
    """Lines posted to the gateway are in the cluster at once, numbered by a script there, and are stored."""
    settings = resources.settings
    urls = (settings.database_url.get_secret_value(), settings.redis_url.get_secret_value())
    body = {"log_type": "stdout", "lines": ["over HTTP"]}
    with GatewayProcess(tmp_path, *urls, STREAMS_URL=cluster.url) as gateway:
        answer = requests.post(f"{gateway.url}/jobs/{CALLED}/callback/logs", json=body, timeout=60)
        assert answer.status_code == 202, answer.text
        with cluster.client() as client:
            assert client.xlen(stream_key("logs", shard_of(CALLED, SHARDS))) == 1
        with workers_running(settings, tmp_path, STREAMS_URL=cluster.url):
            wait_until(lambda: rows(resources.engine, training_logs, "content") == ["over HTTP"], "the line")


def test_a_cluster_is_found_by_any_of_its_servers(cluster: ValkeyCluster) -> None:
    """With one server down a new client finds the others."""
    with cluster.client() as client:
        client.set("ingest:shards", SHARDS)
    cluster.nodes[VICTIM].kill()
    with cluster.client() as client:
        assert client.get("ingest:shards") == str(SHARDS).encode()
        with pytest.raises(redis.RedisError):
            client.xlen(stream_key("logs", shard_of(1, SHARDS)))
