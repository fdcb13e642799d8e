"""The gateway's subscription to the Redis channels of events; reconnects with backoff."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from trainwire.schemas.backoff import Backoff
from trainwire.schemas.streams.tls import redis_trouble

CONNECT_TIMEOUT_S: Final = 5.0
PING_EVERY_S: Final = 5.0
RECEIVE_TIMEOUT_S: Final = 15.0
BACKOFF: Final = Backoff(first_s=0.1, cap_s=2.0)

log = structlog.get_logger("trainwire.gateway.feed.subscription")


class Subscription:
    """Subscribes to Redis channels, again after each reconnection.

    Calls `on_message(channel, data)` for each message, and `on_subscribed(channel)` after each subscription:
    messages that were published before it may have been lost.
    """

    def __init__(
        self, url: str, *, on_message: Callable[[str, bytes], None], on_subscribed: Callable[[str], None]
    ) -> None:
        self._url = url
        self._on_message = on_message
        self._on_subscribed = on_subscribed
        self._wanted: set[str] = set()
        self._subscribed: set[str] = set()
        self._is_changed = asyncio.Event()
        self._received_at = 0.0

    def add(self, channel: str) -> None:
        """Subscribe to a channel; `on_subscribed` is called once Redis has confirmed it."""
        self._wanted.add(channel)
        self._is_changed.set()

    def remove(self, channel: str) -> None:
        """Unsubscribe from a channel."""
        self._wanted.discard(channel)
        self._is_changed.set()

    async def run(self) -> None:
        """Receive messages until cancelled; reconnect with backoff after errors."""
        failures = 0
        while True:
            began_at = time.monotonic()
            try:
                await self._receive()
            except* (RedisError, OSError) as lost:
                log.warning("feed.redis_lost", reason=redis_trouble(lost.exceptions[0]))
            if time.monotonic() - began_at > RECEIVE_TIMEOUT_S:
                failures = 0
            failures += 1
            await asyncio.sleep(BACKOFF.delay_s(failures))

    async def _receive(self) -> None:
        while not self._wanted:
            await self._is_changed.wait()
            self._is_changed.clear()
        client = Redis.from_url(
            self._url,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=CONNECT_TIMEOUT_S,
            socket_keepalive=True,
            health_check_interval=0,
            retry=Retry(NoBackoff(), 0),
        )
        async with client, client.pubsub() as pubsub:
            self._subscribed = set()
            self._received_at = time.monotonic()
            await self._update_channels(pubsub)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read(pubsub))
                tasks.create_task(self._write(pubsub))

    async def _read(self, pubsub: PubSub) -> None:
        while True:
            message: dict[str, Any] | None = await pubsub.get_message(timeout=PING_EVERY_S)
            if message is None:
                continue
            self._received_at = time.monotonic()
            match message["type"]:
                case "message":
                    self._on_message(message["channel"].decode(), message["data"])
                case "subscribe":
                    self._on_subscribed(message["channel"].decode())

    async def _write(self, pubsub: PubSub) -> None:
        """Subscribe and unsubscribe as channels are added and removed; send pings in between.

        The loop checks for a cancellation itself, because `CancelledError` may be lost: `asyncio.wait_for` of
        Python 3.11, which redis-py uses, drops one that comes just as the wait ends.
        """
        task = asyncio.current_task()
        while task is not None and not task.cancelling():
            try:
                await asyncio.wait_for(self._is_changed.wait(), PING_EVERY_S)
            except TimeoutError:
                if time.monotonic() - self._received_at > RECEIVE_TIMEOUT_S:
                    raise ConnectionError(f"Redis has not answered for {RECEIVE_TIMEOUT_S:.0f} s") from None
                if self._subscribed:
                    await pubsub.ping()
            await self._update_channels(pubsub)

    async def _update_channels(self, pubsub: PubSub) -> None:
        self._is_changed.clear()
        wanted = set(self._wanted)
        if new := wanted - self._subscribed:
            await pubsub.subscribe(*new)
        if old := self._subscribed - wanted:
            await pubsub.unsubscribe(*old)
        self._subscribed = wanted
