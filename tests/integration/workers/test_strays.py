"""Keys of shards that do not exist are drained, moved or deleted, and claims get an expiry."""

from __future__ import annotations

import msgspec
import pytest
import redis

from tests.factories import logs, rows
from trainwire.schemas.keys import acks_key, alive_field, alive_key
from trainwire.schemas.tables import dead_letters, ingest_cursors, training_logs
from trainwire.schemas.wire.entries import encode_entry
from trainwire.schemas.wire.heartbeats import Heartbeat, encode_heartbeat
from trainwire.schemas.wire.messages import Message
from trainwire.workers.drain.stream_repair import recent_repairs
from trainwire.workers.resources import Resources
from trainwire.workers.streams.stray_streams import drain_stray_streams


@pytest.mark.parametrize("shard", ["4", "99999999999999999999", "-1", "007", "foo", "", "0}:callbacks:1:{0"])
def test_a_stream_that_no_shard_has_is_drained(resources: Resources, client: redis.Redis, shard: str) -> None:
    """Messages of a stray stream are stored and acknowledged; its key and its cursor are deleted."""
    key = f"ingest:{{{shard}}}:logs"
    for seq in (1, 2):
        client.xadd(key, dict(encode_entry(Message("logs", 9, 1, "0-test", seq, logs(f"line {seq}")))))  # type: ignore[arg-type]
    drain_stray_streams(resources)
    assert rows(resources.engine, training_logs, "content") == ["line 1", "line 2"]
    assert client.hget(acks_key(9), "0-test:logs") == b"2"
    assert not client.exists(key)
    assert not rows(resources.engine, ingest_cursors, "stream", order=["stream"])
    assert recent_repairs(client, 60) == {key: "no shard has it: drained, 2 entries"}


def test_rubbish_in_a_stray_stream_is_dead_lettered(resources: Resources, client: redis.Redis) -> None:
    """Invalid entries of a stray stream are dead-lettered, however large their share is."""
    pipeline = client.pipeline()
    for _ in range(300):
        pipeline.xadd("ingest:{77}:logs", {"x": "y"})
    pipeline.execute()
    drain_stray_streams(resources)
    assert not client.exists("ingest:{77}:logs")
    assert len(rows(resources.engine, dead_letters, "id", order=["id"])) == 300


def test_a_key_that_cannot_be_named_is_deleted(resources: Resources, client: redis.Redis) -> None:
    """Keys with a NUL, which Postgres cannot store, or with a very long name are deleted."""
    for key in (b"ingest:{\x00}:logs", b"ingest:{\xff}:metrics", b"ingest:{" + b"x" * 5000 + b"}:logs"):
        client.xadd(key, {"v": "1"})
    client.hset("ingest:{\n}:alive", "a", "b")
    drain_stray_streams(resources)
    assert not list(client.scan_iter("ingest:{*"))


def test_streams_of_shards_and_other_keys_are_left_alone(resources: Resources, client: redis.Redis) -> None:
    """Streams of existing shards and keys of other applications are not stray."""
    for key in ("ingest:{0}:logs", "ingest:{3}:completions", "elsewhere", "ingest:{4}:logs2"):
        client.xadd(key, {"v": "1"})
    drain_stray_streams(resources)
    assert client.exists("ingest:{0}:logs", "ingest:{3}:completions", "elsewhere", "ingest:{4}:logs2") == 4


def test_heartbeats_of_another_number_of_shards_are_moved(resources: Resources, client: redis.Redis) -> None:
    """A trainer with more shards is not lost: its heartbeat is moved to a shard that workers read."""
    beat = Heartbeat(job=6, source="0-a", at=5)
    client.hset(alive_key(6), mapping={alive_field(6, "0-a"): encode_heartbeat(beat), "odd": "x"})
    drain_stray_streams(resources)
    assert client.hgetall(alive_key(2)) == {b"6:0-a": msgspec.json.encode(beat)}
    assert not client.exists(alive_key(6))


def test_claims_end(resources: Resources, client: redis.Redis) -> None:
    """A claim without an expiry, or with one of years, gets an hour; an invalid one is deleted; others stay."""
    client.set("ingest:claims:1:1:0:", "for ever")
    client.set("ingest:claims:2:1:0:", "a year", ex=365 * 86400)
    client.set("ingest:claims:3:1:0:", "x" * 100_000)
    client.lpush("ingest:claims:4:1:0:", "x")
    client.set("ingest:claims:5:1:0:", "a minute", ex=60)
    drain_stray_streams(resources)
    left = {key.decode(): client.ttl(key) for key in client.scan_iter("ingest:claims:*")}
    assert sorted(left) == [f"ingest:claims:{job}:1:0:" for job in (1, 2, 5)]
    assert all(0 < left_s <= 3600 for left_s in left.values())
    assert left["ingest:claims:5:1:0:"] <= 60
