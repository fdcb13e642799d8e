"""A primary of the streams' cluster is killed; its replica takes over without the writes it never got."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from tests.processes import START_TIMEOUT_S, Process, server_variables, wait_until, workers_running
from tests.trainer_processes import (
    check_command,
    check_each_once,
    check_postgres,
    ends_of,
    let_more_arrive,
    trainers_running,
)
from tests.valkey_cluster import ValkeyCluster, role
from trainwire.schemas.keys import shard_of, stream_key
from trainwire.workers.resources import Resources

SHARDS = 4
JOBS = (1, 2, 3, 4)
VICTIM = 1
"""The server with the streams of jobs 1 and 2."""
HIT = (1, 2)
MANY = 100


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ValkeyCluster]:
    """Three primaries with a replica each, which this test may damage."""
    with ValkeyCluster(tmp_path / "cluster", has_replicas=True) as cluster:
        yield cluster


def waiting(client: redis.Redis, job: int) -> int:
    """Return the number of messages in the stream of a job's lines."""
    return int(client.xlen(stream_key("logs", shard_of(job, SHARDS))))


def newest_id(client: redis.Redis, job: int) -> str:
    """Return the id of the newest message in the stream of a job's lines."""
    found = cast("list[tuple[bytes, Any]]", client.xrevrange(stream_key("logs", shard_of(job, SHARDS)), count=1))
    return found[0][0].decode()


def start_again(worker: Process) -> None:
    """Start a killed worker and wait until it takes orders."""
    before = worker.output.count(" ready.")
    worker.start()
    wait_until(lambda: worker.output.count(" ready.") > before, "the worker's start", START_TIMEOUT_S)


def test_a_replica_takes_over_and_its_missing_messages_are_resent(
    resources: Resources, cluster: ValkeyCluster, tmp_path: Path
) -> None:
    """Messages that Redis accepted and lost are detected and resent: every line is stored once."""
    settings = resources.settings
    env = {
        **server_variables(settings),
        "STREAMS_URL": cluster.url,
    }
    primary, replica = cluster.nodes[VICTIM], cluster.replicas[VICTIM]
    with (
        workers_running(settings, tmp_path, workers=2, STREAMS_URL=cluster.url) as workers,
        trainers_running(resources.engine, JOBS, env) as trainers,
    ):
        for trainer in trainers.values():
            trainer.advance()
        let_more_arrive(resources.engine, *JOBS)
        cluster.cut_off(VICTIM)
        let_more_arrive(resources.engine, *HIT)  # and are acked, which the replica will not know
        for worker in workers:
            worker.kill()
        with cluster.client() as client:
            wait_until(lambda: all(waiting(client, job) >= MANY for job in HIT), "messages that only Redis has")
            taken = newest_id(client, HIT[0])
        primary.kill()
        wait_until(lambda: role(replica) == "master", "the replica to take over")
        with redis.Redis.from_url(replica.url) as client:
            assert not client.xrange(stream_key("logs", shard_of(HIT[0], SHARDS)), taken, taken), (
                "nothing was lost"
            )
        for worker in workers:
            start_again(worker)
        let_more_arrive(resources.engine, *JOBS)
        primary.start()
        wait_until(lambda: role(primary) == "slave", "the old primary to follow")
        let_more_arrive(resources.engine, *JOBS)
        counts = ends_of(trainers)
        for job in JOBS:
            check = check_each_once if job in HIT else check_postgres
            check(resources.engine, job, counts[job])
            check_command(job, env)
