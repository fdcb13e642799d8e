"""The feed ends with its gateway, also where a library loses the cancellation of a task."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio.client import PubSub

from trainwire.gateway.feed import subscription
from trainwire.gateway.feed.live_feed import LiveFeed
from trainwire.gateway.settings import load_gateway_settings
from trainwire.stores.postgres.connections import open_redis
from trainwire.stores.rows.metric_names import MetricNames

LONG_S = 120.0
"""Half of it is more than a busy machine needs for the end."""


async def without_cancellation() -> None:
    """Wait for a cancellation, and lose it."""
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        return


def seconds_to_end(database_url: str, redis_url: str, begun: asyncio.Event) -> float:
    """Start a feed; once `begun` is set, return the seconds that its end takes, at most 60."""

    async def run() -> float:
        settings = load_gateway_settings(database_url=database_url, redis_url=redis_url)
        feed = LiveFeed(settings, MetricNames(), open_redis(settings))
        await feed.__aenter__()
        await asyncio.wait_for(begun.wait(), 60)
        began = asyncio.get_running_loop().time()
        await asyncio.wait_for(feed.__aexit__(None, None, None), 60)
        return asyncio.get_running_loop().time() - began

    return asyncio.run(run())


def test_the_end_of_a_ping_may_hide_a_cancellation(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancellation that is lost in a ping ends the subscription before Redis would be missed."""
    begun = asyncio.Event()

    async def ping(_: PubSub) -> None:
        begun.set()
        await without_cancellation()

    monkeypatch.setattr(PubSub, "ping", ping)
    monkeypatch.setattr(subscription, "RECEIVE_TIMEOUT_S", LONG_S)
    monkeypatch.setattr(subscription, "PING_EVERY_S", 0.05)
    assert seconds_to_end(database_url, redis_url, begun) < LONG_S / 2


def test_a_part_may_lose_a_cancellation(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of the feed that has lost one is cancelled again."""
    begun = asyncio.Event()

    async def run(_: subscription.Subscription) -> None:
        if begun.is_set():
            await asyncio.sleep(3600)
        begun.set()
        await without_cancellation()

    monkeypatch.setattr(subscription.Subscription, "run", run)
    monkeypatch.setattr(subscription, "RECEIVE_TIMEOUT_S", LONG_S)
    assert seconds_to_end(database_url, redis_url, begun) < LONG_S / 2
