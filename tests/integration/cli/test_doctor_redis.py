"""`trainwire doctor` on servers of Redis, each broken in one way."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import redis

from tests.integration.cli.conftest import Doctor
from tests.processes import wait_until
from tests.valkey_cluster import NODES, ValkeyCluster
from trainwire.schemas.keys import DEFAULT_SHARDS, SHARDS_KEY
from trainwire.stack.valkey import EmbeddedValkey


@contextmanager
def set_to(client: redis.Redis, **settings: object) -> Iterator[None]:
    """Give a server other settings for a while."""
    named = {name.replace("_", "-"): value for name, value in settings.items()}
    before: dict[str, str] = {name: str(client.config_get(name)[name]) for name in named}
    for name, value in named.items():
        client.config_set(name, str(value))
    try:
        yield
    finally:
        for name, value in before.items():
            client.config_set(name, value)


def test_a_redis_that_evicts_or_does_not_persist(doctor: Doctor, client: redis.Redis) -> None:
    """An eviction policy is an error; no append-only file and no limit are warnings; each has its command."""
    with set_to(client, maxmemory_policy="allkeys-lru", appendonly="no", maxmemory=0):
        found = doctor.look()
    assert found["redis.eviction"]["level"] == "error"
    assert "allkeys-lru" in found["redis.eviction"]["says"]
    assert "config set maxmemory-policy noeviction" in found["redis.eviction"]["remedy"]
    assert found["redis.persistence"]["level"] == "warning"
    assert found["redis.memory"]["level"] == "warning"


def test_a_full_redis(doctor: Doctor, client: redis.Redis) -> None:
    """A Redis at its limit is an error, one above the high-water mark a warning."""
    used = int(client.info("memory")["used_memory"])
    with set_to(client, maxmemory=int(used * 1.2)):
        assert doctor.look()["redis.memory"]["level"] == "warning"
    with set_to(client, maxmemory=int(used * 0.9)):
        assert doctor.look()["redis.memory"]["level"] == "error"


def test_a_replica_takes_no_writes(doctor: Doctor, alone: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """REDIS_URL that leads to a replica is an error."""
    with EmbeddedValkey(tmp_path / "replica", settings={"replicaof": "127.0.0.1 1"}) as server:
        alone.setenv("REDIS_URL", server.url)
        found = doctor.look()
    assert found["redis.role"]["level"] == "error"
    assert found["redis.shards"]["says"] == "no worker has ever started here"


def test_a_redis_that_is_down(doctor: Doctor, alone: pytest.MonkeyPatch) -> None:
    """A Redis that does not answer is one error; Postgres is checked as well."""
    alone.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    found = doctor.look()
    assert found["redis.answers"]["level"] == "error"
    assert found["postgres.schema"]["level"] == "ok"
    assert doctor.code == 2


def test_workers_with_other_shards(doctor: Doctor, client: redis.Redis) -> None:
    """Workers that published another number of shards than this machine's setting are reported."""
    client.set(SHARDS_KEY, 8)
    assert doctor.look()["redis.shards"]["level"] == "error"


def test_a_number_of_shards_that_another_client_wrote(doctor: Doctor, client: redis.Redis) -> None:
    """A published number of shards that is no number is an error with a remedy, and all other checks run."""
    client.set(SHARDS_KEY, "eight")
    found = doctor.look()
    assert found["redis.shards"]["level"] == "error"
    assert "'eight'" in found["redis.shards"]["says"]
    assert found["postgres.schema"]["level"] == "ok"


@contextmanager
def crowd(client: redis.Redis, others: int) -> Iterator[int]:
    """Open connections of other clients for a while; give the total number of connections."""
    where = client.connection_pool.connection_kwargs
    with ExitStack() as stack:
        for _ in range(others):
            stack.enter_context(socket.create_connection((where["host"], where["port"]), timeout=10))
        # A connection stands before the server has accepted it, and only then it counts.
        wait_until(lambda: _connected(client) > others, "the server to accept them all")
        yield _connected(client)


def _connected(client: redis.Redis) -> int:
    return int(client.info("clients")["connected_clients"])


def test_hardly_any_connections_left(doctor: Doctor, client: redis.Redis) -> None:
    """Above 80 % of `maxclients` is a warning, which names the limit of open files if that is the cause."""
    assert doctor.look()["redis.clients"]["level"] == "ok"
    with crowd(client, 120) as there, set_to(client, maxclients=there + 25):
        found = doctor.look()["redis.clients"]
    assert (found["level"], "open files" in found["says"]) == ("warning", False)
    assert "raise its limit of open files with it" in found["remedy"]
    with crowd(client, 76), set_to(client, maxclients=128 - 32):
        found = doctor.look()["redis.clients"]
    assert "its limit of open files, 128, seems to determine it" in found["says"]


def test_no_connection_left(doctor: Doctor, client: redis.Redis) -> None:
    """If the doctor's own connection is refused, the remedy has the limit."""
    with set_to(client, maxclients=1):
        found = doctor.look()["redis.answers"]
    assert found["level"] == "error"
    assert found["remedy"].startswith("redis-cli config set maxclients")
    assert "were refused since its start" in doctor.look()["redis.clients"]["says"]


def test_streams_on_a_server_of_their_own(doctor: Doctor, alone: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The streams' server is checked for persistence; the broker then needs no append-only file."""
    settings = {"maxmemory-policy": "allkeys-lru", "appendonly": "no", "maxclients": "40"}
    with (
        EmbeddedValkey(tmp_path / "streams", settings=settings) as server,
        EmbeddedValkey(tmp_path / "broker", settings={"appendonly": "no"}) as broker,
    ):
        alone.setenv("STREAMS_URL", server.url)
        alone.setenv("REDIS_URL", broker.url)
        with redis.Redis.from_url(server.url) as client, crowd(client, 35):
            found = doctor.look()
    assert found["streams.eviction"]["level"] == "error"
    assert found["streams.persistence"]["level"] == "warning"
    assert found["streams.clients"]["level"] == "warning"
    assert found["streams.shards"]["says"] == "no worker has ever started here"
    assert found["redis.persistence"]["level"] == "ok"
    assert "redis.shards" not in found


def test_each_server_of_a_cluster(doctor: Doctor, alone: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A problem of one server is reported for it; one that does not answer is an error; the others are checked."""
    with ValkeyCluster(tmp_path) as cluster:
        alone.setenv("STREAMS_URL", cluster.url)
        with cluster.client() as client:
            client.set(SHARDS_KEY, DEFAULT_SHARDS)
        names = [f"127.0.0.1:{node.port}" for node in cluster.nodes]
        with redis.Redis.from_url(cluster.nodes[1].url) as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
            client.config_set("appendonly", "no")
        found = doctor.look()
        policies = {name: found[f"streams.eviction-{name}"]["level"] for name in names}
        assert policies == {names[0]: "ok", names[1]: "error", names[2]: "ok"}
        assert found[f"streams.persistence-{names[1]}"]["level"] == "warning"
        assert names[1] in found[f"streams.persistence-{names[1]}"]["says"]
        assert found["streams.shards"]["level"] == "ok"
        for number in range(NODES):
            cluster.nodes[number].kill()
            found = doctor.look()
            assert found[f"streams.answers-{names[number]}"]["level"] == "error"
            others = [name for name in names if f"streams.clients-{name}" in found]
            assert others == [name for name in names if name != names[number]]
            cluster.nodes[number].start()
