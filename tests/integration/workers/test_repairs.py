"""Streams that a client has jammed or emptied, and keys of the wrong type, are repaired automatically."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import redis

from tests.factories import Sender, drain, logs, rows
from trainwire.schemas.keys import KINDS, acks_key, alive_key, jammed_key, stream_key
from trainwire.schemas.tables import dead_letters, training_logs
from trainwire.workers.drain.stream import IngestStream
from trainwire.workers.drain.stream_repair import recent_repairs, repair
from trainwire.workers.errors import MostlyInvalid
from trainwire.workers.liveness.heartbeat_reader import read_heartbeats
from trainwire.workers.resources import Resources
from trainwire.workers.streams.stray_streams import drain_jammed
from trainwire.workers.streams.sweep import overdue

LAST = 2**64 - 1
STREAM = stream_key("logs", 1)
JAMS = [f"{LAST}-{LAST}", f"{LAST}-0", f"{LAST - 1}-{LAST}", "9999999999999-0"]


@pytest.mark.parametrize("entry_id", JAMS)
def test_a_jammed_stream_is_drained_and_started_anew(resources: Resources, sender: Sender, entry_id: str) -> None:
    """Earlier entries are stored, the one that jams the stream is dead-lettered, and trainers can append again."""
    sender.send(logs("before"))
    sender.client.xadd(STREAM, {"v": "1"}, id=entry_id)
    drain(resources)
    assert not sender.client.exists(STREAM)
    sender.send(logs("after"))
    drain(resources)
    assert rows(resources.engine, training_logs, "content") == ["before", "after"]
    assert len(rows(resources.engine, dead_letters, "id", order=["id"])) == 1
    assert sender.client.hget(acks_key(1), "0-test:logs") == b"2"
    assert recent_repairs(sender.client, 60) == {STREAM: f"jammed at id {entry_id}: started anew"}


@pytest.mark.parametrize("trim", [("MAXLEN", 0), ("MINID", LAST)])
@pytest.mark.parametrize("entry_id", JAMS)
def test_a_stream_that_is_jammed_and_empty_is_started_anew(
    resources: Resources, sender: Sender, entry_id: str, trim: tuple[object, ...]
) -> None:
    """A stream that one command has jammed and emptied is replaced, though no drain finds an entry."""
    sender.client.execute_command("XADD", STREAM, *trim, entry_id, "v", 1)  # type: ignore[no-untyped-call]
    sender.client.xtrim(STREAM, maxlen=0)
    assert list(repair(sender.client, 4)) == [STREAM]
    assert not repair(sender.client, 4)
    sender.send(logs("after"))
    assert drain(resources).stored == 1


def test_a_settle_that_comes_late_deletes_nothing_of_the_new_stream(resources: Resources, sender: Sender) -> None:
    """Of two drains of a jammed stream the later one deletes nothing of the stream that replaced it."""
    sender.send(logs("before"))
    sender.client.xadd(STREAM, {"v": "1"}, id=JAMS[0])
    late = IngestStream(sender.client, "logs", 1)
    entries, _ = late.read(late.begin([]).first_page, 10**6)
    drain(resources)
    sender.send(logs("after"))
    late.settle([], entries[-1].entry_id)
    assert drain(resources).stored == 1
    assert rows(resources.engine, training_logs, "content") == ["before", "after"]


@pytest.mark.parametrize("entry_id", JAMS)
def test_a_jammed_stream_that_is_halted_takes_entries_again(
    resources: Resources, sender: Sender, entry_id: str
) -> None:
    """A halted stream, which never becomes empty, is renamed and drained beside the new one."""
    garbage: dict[Any, Any] = {"v": 1, "job": 9, "attempt": 1, "source": "s", "enc": "x", "body": "y"}
    for number in range(100):
        sender.client.xadd(STREAM, garbage | {"seq": number})
    with pytest.raises(MostlyInvalid):
        drain(resources)
    sender.send(logs("behind garbage"))
    sender.client.xadd(STREAM, garbage, id=entry_id)
    with suppress(redis.ResponseError):
        sender.send_raw("logs", 1, garbage)  # with most of the ids it is appended, with an id ahead of the clock
    assert list(repair(sender.client, 4)) == [STREAM]
    sender.send(logs("after"))
    assert drain(resources).stored == 1
    assert overdue(sender.client, 4).streams == [("logs", 1)]
    drain_jammed(resources, IngestStream(sender.client, "logs", 1))
    assert rows(resources.engine, training_logs, "content") == ["after", "behind garbage"]
    assert len(rows(resources.engine, dead_letters, "id", order=["id"])) in {101, 102}
    assert not sender.client.exists(jammed_key("logs", 1))
    assert sender.client.hget(acks_key(1), "0-test:logs") == b"2"
    assert not overdue(sender.client, 4).streams


def test_a_stream_jammed_again_waits_for_the_renamed_one(resources: Resources, sender: Sender) -> None:
    """Nothing is overwritten: the second jam is repaired once the entries of the first are drained."""
    for _ in range(2):
        sender.send(logs("a"))
        sender.client.xadd(STREAM, {"v": "1"}, id=JAMS[0])
        repair(sender.client, 4)
    assert sender.client.exists(jammed_key("logs", 1), STREAM) == 2
    drain_jammed(resources, IngestStream(sender.client, "logs", 1))
    assert list(repair(sender.client, 4)) == [STREAM]
    drain_jammed(resources, IngestStream(sender.client, "logs", 1))
    assert rows(resources.engine, training_logs, "content") == ["a", "a"]


def test_streams_that_are_in_order_are_left_alone(resources: Resources, sender: Sender) -> None:
    """A stream with entries, or an empty one whose last id is recent, is not changed."""
    sender.send(logs("a"))
    assert not repair(sender.client, 4)
    drain(resources)
    assert not repair(sender.client, 4)
    assert sender.client.exists(STREAM)


def test_keys_of_the_wrong_type_are_set_aside(resources: Resources, sender: Sender) -> None:
    """A key of another type is renamed, and the stream works again."""
    for shard in range(4):
        for kind in KINDS:
            sender.client.set(stream_key(kind, shard), "a typo")
        sender.client.lpush(alive_key(shard), "a typo")
    assert len(repair(sender.client, 4)) == 20
    sender.send(logs("a"))
    assert drain(resources).stored == 1
    assert read_heartbeats(sender.client, 4, 60).now_ms
    assert sender.client.get(f"{STREAM}:set-aside") == b"a typo"
    assert 0 < sender.client.ttl(f"{STREAM}:set-aside") <= 7 * 24 * 3600


def test_a_full_redis_does_not_keep_a_drain_from_starting(resources: Resources, client: redis.Redis) -> None:
    """If Redis refuses the drain's own key at `maxmemory`, the drain continues without it."""
    sender = Sender(client)
    sender.send(logs("a"))
    limit = client.config_get("maxmemory")["maxmemory"]
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(redis.OutOfMemoryError):
            client.set("x", 1)
        drain(resources)
    finally:
        client.config_set("maxmemory", str(limit))
    assert rows(resources.engine, training_logs, "content") == ["a"]
