"""Opens the Redis clients of commands, and reads which drains workers have stopped because of invalid entries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from trainwire.schemas.keys import HALTED_KEY
from trainwire.schemas.streams.clients import STREAM_ERRORS, open_streams
from trainwire.stores.postgres.connections import open_redis, open_stream_client
from trainwire.stores.settings import StoreSettings

HALTED_TIMEOUT_S: Final = 1.0
"""Timeout in seconds; it is short because `trainwire status` can do without the halted drains."""


@contextmanager
def redis_clients(settings: StoreSettings) -> Iterator[tuple[redis.Redis, redis.Redis | None]]:
    """Open a client for REDIS_URL, and one for STREAMS_URL (None if it is not set); close both after the block."""
    client, streams = open_redis(settings), open_stream_client(settings)
    try:
        yield client, streams
    finally:
        client.close()
        if streams is not None:
            streams.close()


@contextmanager
def stream_client(settings: StoreSettings) -> Iterator[redis.Redis]:
    """Open a client for the Redis that stores the streams; close it after the block."""
    with redis_clients(settings) as (client, streams):
        yield streams or client


def halted_streams(redis_url: str | None) -> dict[str, str]:
    """Return stream -> reason for each stream whose drain workers have stopped.

    Returns an empty map if `redis_url` is None or invalid, or if Redis does not respond within HALTED_TIMEOUT_S.
    """
    if redis_url is None:
        return {}
    timeouts = {"socket_connect_timeout": HALTED_TIMEOUT_S, "socket_timeout": HALTED_TIMEOUT_S}
    try:
        client = open_streams(redis_url, **timeouts, retry=Retry(NoBackoff(), 0))
    except ValueError:
        return {}
    try:
        found = client.hgetall(HALTED_KEY)
    except STREAM_ERRORS:
        return {}
    finally:
        client.close()
    return {_text(stream): _text(reason) for stream, reason in found.items()}


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
