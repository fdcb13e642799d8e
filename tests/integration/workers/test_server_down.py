"""With one server of the cluster down, processes that use all servers continue with the others."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from tests.factories import Sender, logs, one
from tests.processes import wait_until
from tests.valkey_cluster import ValkeyCluster
from trainwire.cli.doctor.flow import check_streams
from trainwire.cli.top.snapshot import take
from trainwire.ingest.identity.origin import Origin
from trainwire.ingest.sending.heartbeat import SourceHeartbeat
from trainwire.ingest.sending.transports.redis_connection import RedisConnection
from trainwire.ingest.settings.setting_groups import Vitals
from trainwire.schemas.keys import ORDERED_TTL_S, alive_field, alive_key, claim_key, ordered_key, stream_key
from trainwire.schemas.streams import servers as stream_servers
from trainwire.schemas.tables import training_jobs
from trainwire.schemas.wire.heartbeats import Heartbeat, encode_heartbeat
from trainwire.stores.postgres.connections import open_stream_client
from trainwire.workers.liveness.heartbeat_reader import read_heartbeats
from trainwire.workers.liveness.job_status import LostRule, update_statuses
from trainwire.workers.operations.exporter import Exporter
from trainwire.workers.resources import Resources
from trainwire.workers.rollups.pace import BACKLOG_BYTES, has_backlog
from trainwire.workers.settings import load_settings
from trainwire.workers.streams.sweep import drain_everything, overdue, publish_hold
from trainwire.workers.watchdog import StuckStreams

SHARDS: Final = 4
FIRST: Final = 0
"""The server of the first slots, to which redis-py sends commands without a key."""
VICTIM: Final = 1
"""The server of shards 1 and 2, without the keys that all trainers read."""
DOWN: Final = (1, 2)
OTHERS: Final = (3, 4)
LOST_AFTER_S: Final = 4.0
GAP_S: Final = 2.0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ValkeyCluster]:
    """A cluster that the test may damage."""
    with ValkeyCluster(tmp_path / "cluster") as cluster:
        yield cluster


@pytest.fixture
def split(resources: Resources, cluster: ValkeyCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Resources]:
    """Workers whose streams are on the cluster; a server that is back is used at once."""
    monkeypatch.setattr(stream_servers, "RETRY_AFTER_S", 0.2)
    settings = load_settings(
        database_url=resources.settings.database_url.get_secret_value(),
        redis_url=resources.settings.redis_url.get_secret_value(),
        streams_url=cluster.url,
    )
    client = open_stream_client(settings)
    assert client is not None
    yield Resources(settings, resources.engine, resources.redis, client)
    client.close()


def send_heartbeats(split: Resources, *jobs: int) -> None:
    """Send a heartbeat for each job."""
    for job in jobs:
        seconds, _ = split.streams.time()
        beat = Heartbeat(job=job, source="0-test", at=seconds * 1000)
        split.streams.hset(alive_key(job % SHARDS), alive_field(job, "0-test"), encode_heartbeat(beat))


def statuses(split: Resources) -> dict[int, str]:
    """Check heartbeats once; return the statuses of the jobs."""
    update_statuses(split.engine, read_heartbeats(split.streams, SHARDS, GAP_S), LostRule(LOST_AFTER_S))
    return {job: str(one(split.engine, training_jobs, id=job)["status"]) for job in (*DOWN, *OTHERS)}


def test_streams_on_the_other_servers_are_ordered(split: Resources, cluster: ValkeyCluster) -> None:
    """The sweep and the watchdog find streams on the servers that answer, and report those that do not."""
    sender = Sender(split.streams)
    for job in (*DOWN, *OTHERS):
        sender.send(logs("a"), job=job)
    assert overdue(split.streams, SHARDS).streams == [("logs", 0), ("logs", 1), ("logs", 2), ("logs", 3)]
    split.streams.set(ordered_key(stream_key("logs", 3)), 1, ex=10 * ORDERED_TTL_S)
    now_s = 0.0
    stuck = StuckStreams(split.streams, SHARDS, lambda: now_s)
    cluster.nodes[VICTIM].kill()
    found = overdue(split.streams, SHARDS)
    assert found.streams == [("logs", 0)]
    assert list(found.unavailable) == [f"127.0.0.1:{cluster.nodes[VICTIM].port}"]
    publish_hold(split.streams, 0.75)
    assert not stuck.find()
    now_s = 100.0
    assert stuck.find() == [stream_key("logs", 0), stream_key("logs", 3)]
    cluster.nodes[VICTIM].start()
    wait_until(lambda: not overdue(split.streams, SHARDS).unavailable, "the server's return")


def test_jobs_on_a_server_that_is_down_are_not_lost(split: Resources, cluster: ValkeyCluster) -> None:
    """After all trainers died with a server, jobs of its shards are lost only once it is back, others in time."""
    sender = Sender(split.streams)
    for job in (*DOWN, *OTHERS):
        sender.send(logs("a"), job=job)
    drain_everything(split)
    send_heartbeats(split, *DOWN, *OTHERS)
    assert set(statuses(split).values()) == {"running"}
    cluster.nodes[VICTIM].kill()
    wait_until(lambda: [statuses(split)[job] for job in OTHERS] == ["lost", "lost"], "the others lost")
    began = time.monotonic()
    while time.monotonic() - began < 1.5 * LOST_AFTER_S:
        assert [statuses(split)[job] for job in DOWN] == ["running", "running"]
        time.sleep(0.05)
    cluster.nodes[VICTIM].start()
    returned = time.monotonic()
    wait_until(lambda: [statuses(split)[job] for job in DOWN] == ["lost", "lost"], "these lost too")
    assert time.monotonic() - returned > LOST_AFTER_S


def exported(split: Resources) -> dict[str, float]:
    """Return the output of the exporter, by series."""
    registry = CollectorRegistry()
    registry.register(Exporter(split))
    lines = generate_latest(registry).decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_reachable_shards_are_shown_and_a_server_that_is_down_is_named(
    split: Resources, cluster: ValkeyCluster
) -> None:
    """The exporter omits shards that it cannot reach; top and the doctor name the server and continue."""
    sender = Sender(split.streams)
    for job in (*DOWN, *OTHERS):
        sender.send(logs("a"), job=job)
    send_heartbeats(split, *DOWN, *OTHERS)
    whole = exported(split)
    lag = 'trainwire_stream_lag_entries{{kind="logs",shard="{}"}}'.format
    assert [whole[lag(shard)] for shard in range(SHARDS)] == [1, 1, 1, 1]
    assert whole["trainwire_live_trainers"] == 4
    cluster.nodes[VICTIM].kill()
    seen = exported(split)
    server = f"127.0.0.1:{cluster.nodes[VICTIM].port}"
    assert [seen.get(lag(shard)) for shard in range(SHARDS)] == [1, None, None, 1]
    ups = {name: value for name, value in seen.items() if name.startswith("trainwire_shard_up")}
    assert [name for name, value in ups.items() if not value] == [
        f'trainwire_shard_up{{server="{server}",shard="{shard}"}}' for shard in DOWN
    ]
    assert sum(ups.values()) == 2
    assert "trainwire_live_trainers" not in seen, "a sum over some is not the sum"
    assert seen['trainwire_store_up{store="redis"}'] == 1
    assert "trainwire_redis_used_bytes" in seen

    now = take(split.redis, split.engine, split.settings, streams=split.streams)
    assert now.unreachable == (f"{server} does not answer: it has the streams of shard 1, 2",)
    found = {each.check: each for each in check_streams(split.redis, split.settings, split.streams)}
    assert found["server"].level == "error"
    assert found["server"].says.startswith(f"{server} does not answer: messages of shard 1, 2 stay")
    assert found["streams"].level == "ok"
    cluster.nodes[VICTIM].start()
    wait_until(partial(_is_whole, split), "all lags again")


def test_a_heartbeat_needs_only_the_servers_that_have_its_keys(split: Resources, cluster: ValkeyCluster) -> None:
    """The server with the heartbeat's key gives the time, not the first server."""
    port_of = {job: _ports(split, alive_key(job % SHARDS), claim_key(job, 1, 0, "")) for job in range(1, 100)}
    victim = cluster.nodes[FIRST]
    job = next(job for job, ports in port_of.items() if victim.port not in ports)
    connection = RedisConnection(cluster.url, job, "0-test")
    connection.send_heartbeat(SourceHeartbeat(Origin(job, 1, "0-test", 0), Vitals(), lambda: 0))
    split.streams.delete(alive_key(job % SHARDS))  # the number of shards is known now, before the server is away
    victim.kill()
    heartbeat = SourceHeartbeat(Origin(job, 1, "0-test", 0), Vitals(), lambda: 0)
    connection.send_heartbeat(heartbeat)
    assert heartbeat.is_known
    assert split.streams.hkeys(alive_key(job % SHARDS)) == [alive_field(job, "0-test").encode()]
    connection.close()


def _ports(split: Resources, *keys: str) -> set[int]:
    return {cast("Any", split.streams).get_node_from_key(key).port for key in keys}


def _is_whole(split: Resources) -> bool:
    return sum(value for name, value in exported(split).items() if name.startswith("trainwire_shard_up")) == SHARDS


def test_a_backlog_is_noticed_on_the_servers_that_answer(split: Resources, cluster: ValkeyCluster) -> None:
    """Rollups measure the streams of all servers, and ignore a server that is down."""
    assert not has_backlog(split.streams, SHARDS)
    cluster.nodes[VICTIM].kill()
    for _ in range(30):
        split.streams.xadd(stream_key("metrics", OTHERS[0]), {"body": bytes(BACKLOG_BYTES // 20)})
    assert has_backlog(split.streams, SHARDS)
