"""The watch orders a drain as soon as a stream has entries, also after a deletion or a restart."""

from __future__ import annotations

import time
from collections.abc import Collection

import pytest
import redis

from tests.factories import Sender, logs
from tests.processes import wait_until
from trainwire.schemas.keys import SHARDS_KEY, Kind, ordered_key, stream_key
from trainwire.stores.postgres.connections import open_redis
from trainwire.workers.settings import Settings
from trainwire.workers.streams import watch as stream_watch
from trainwire.workers.streams.sweep import all_streams, publish_shards
from trainwire.workers.streams.watch import Watcher


class Orders:
    """Records orders; refuses one while a drain is ordered, as `order_drain` does."""

    def __init__(self, client: redis.Redis) -> None:
        self.sent: list[tuple[Kind, int]] = []
        self._client = client

    def __call__(self, kind: Kind, shard: int) -> float:
        """Order a drain; return 0, or the seconds until the mark of the ordered one expires."""
        key = ordered_key(stream_key(kind, shard))
        if not self._client.set(key, 1, nx=True, px=200):
            return max(1, self._client.pttl(key)) / 1000
        self.sent.append((kind, shard))
        return 0


@pytest.fixture
def orders(client: redis.Redis) -> Orders:
    """No orders yet."""
    return Orders(client)


@pytest.fixture
def watcher(settings: Settings, orders: Orders) -> Watcher:
    """Watches the streams of four shards."""
    return Watcher(open_redis(settings), all_streams(4), orders)


def watch_until(watcher: Watcher, orders: Orders, number: int) -> None:
    """Watch until so many drains are ordered."""

    def are_sent() -> bool:
        watcher.order_drains()
        return len(orders.sent) >= number

    wait_until(are_sent, f"{number} orders")


def test_entries_are_ordered_at_once(watcher: Watcher, sender: Sender, orders: Orders) -> None:
    """Each stream with entries gets one order, the others none."""
    sender.send(logs("a"), job=1)
    sender.send(logs("b"), job=2)
    watcher.order_drains()
    assert sorted(orders.sent) == [("logs", 1), ("logs", 2)]


def test_a_stream_that_is_not_drained_is_ordered_again(watcher: Watcher, sender: Sender, orders: Orders) -> None:
    """A lost order is sent again once the mark of the ordered drain has expired, not before."""
    sender.send(logs("a"))
    began = time.monotonic()
    watch_until(watcher, orders, 3)
    assert orders.sent == [("logs", 1)] * 3
    assert time.monotonic() - began > 0.4


def test_a_stream_born_anew_is_noticed(watcher: Watcher, sender: Sender, orders: Orders) -> None:
    """After FLUSHALL and a clock set back, entries with lower ids than before are noticed."""
    sender.send(logs("a"))
    watcher.order_drains()
    sender.client.flushdb()
    time.sleep(0.02)
    sender.send(logs("b"), entry_id="5-1")
    watcher.order_drains()
    assert orders.sent == [("logs", 1), ("logs", 1)]


def test_a_key_of_the_wrong_type_leaves_the_others_watched(
    watcher: Watcher, sender: Sender, orders: Orders
) -> None:
    """If the blocking read fails for one key, the next read has the others."""
    sender.client.set(stream_key("logs", 0), "a typo")
    sender.send(logs("a"), job=1)
    watch_until(watcher, orders, 1)
    assert orders.sent == [("logs", 1)]


def test_large_entries_are_read_seldom(watcher: Watcher, sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blocking read returns an entry: one of 8 MB is read once a second at most."""
    reads: list[list[tuple[str, int]]] = []
    read = watcher._read

    def counted(keys: Collection[str], wait_s: float) -> list[tuple[str, int]]:
        reads.append(read(keys, wait_s))
        return reads[-1]

    monkeypatch.setattr(watcher, "_read", counted)
    sender.client.xadd(stream_key("logs", 1), {"body": "x" * 8 * 1024 * 1024})
    began = time.monotonic()
    while time.monotonic() - began < 2.5:
        watcher.order_drains()
    assert 1 <= len([found for found in reads if found]) <= 1 + time.monotonic() - began
    assert stream_watch.MOST_PAUSE_S < 1


def test_the_number_of_shards_comes_back(client: redis.Redis) -> None:
    """After FLUSHALL it is published again; the number of another worker is not overwritten."""
    client.set(SHARDS_KEY, 8)
    publish_shards(client, 2)
    assert client.get(SHARDS_KEY) == b"8"
    client.flushdb()
    publish_shards(client, 2)
    assert client.get(SHARDS_KEY) == b"2"
