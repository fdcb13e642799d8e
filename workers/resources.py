"""The connections of a worker process: opened once per process, and never shared with a forked child."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

from redis import Redis
from sqlalchemy import Engine

from trainwire.stores.postgres.connections import open_engine, open_redis, open_stream_client
from trainwire.workers.settings import Settings, load_settings


@dataclass(frozen=True)
class Resources:
    """The settings and connections of one worker process."""

    settings: Settings
    engine: Engine
    redis: Redis
    """Client of the Redis server of work orders and events."""
    stream_client: Redis | None = None
    """Client of the Redis server of the streams, if that is a different one."""

    @property
    def streams(self) -> Redis:
        """Client of the Redis server of streams, acknowledgements and heartbeats."""
        return self.redis if self.stream_client is None else self.stream_client


def process_resources() -> Resources:
    """Return the settings and connections of this process; a forked child opens new ones on its first call."""
    return _resources_of(os.getpid())


@cache
def _resources_of(_pid: int) -> Resources:
    settings = load_settings()
    return Resources(settings, open_engine(settings), open_redis(settings), open_stream_client(settings))
