"""A worker process's connections, made once per process and never shared over a fork."""

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
    """What the tasks of one process work with."""

    settings: Settings
    engine: Engine
    redis: Redis
    """The broker of the work orders, and who has the events."""
    stream_client: Redis | None = None
    """Who has the streams, if another server."""

    @property
    def streams(self) -> Redis:
        """Return the client of the server that has the streams, its acks and heartbeats."""
        return self.redis if self.stream_client is None else self.stream_client


def process_resources() -> Resources:
    """Return this process's own connections; a forked child makes new ones on its first call."""
    return _resources_of(os.getpid())


@cache
def _resources_of(_pid: int) -> Resources:
    settings = load_settings()
    return Resources(settings, open_engine(settings), open_redis(settings), open_stream_client(settings))
