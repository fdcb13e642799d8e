"""A worker process's connections, made once per process and never shared over a fork."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

import redis
from sqlalchemy import Engine

from stores.connections import open_engine, open_redis
from workers.settings import Settings, load_settings


@dataclass(frozen=True)
class Resources:
    """What the tasks of one process work with."""

    settings: Settings
    engine: Engine
    redis: redis.Redis


def process_resources() -> Resources:
    """Return this process's own connections; a forked child makes new ones on its first call."""
    return _resources_of(os.getpid())


@cache
def _resources_of(_pid: int) -> Resources:
    settings = load_settings()
    return Resources(settings, open_engine(settings), open_redis(settings))
