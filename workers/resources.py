"""Connections to Postgres and Redis, each with time-outs, made once per process and never shared over a fork."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

import redis
import sqlalchemy
from redis.backoff import ExponentialBackoff
from redis.retry import Retry
from sqlalchemy import Engine

from workers.settings import Settings, load_settings

CONNECT_TIMEOUT_S = 5
SOCKET_TIMEOUT_S = 20


def open_engine(settings: Settings, *, name: str = "trainwire") -> Engine:
    """Return an engine whose sessions are in UTC and notice within a second that their client is gone."""
    return sqlalchemy.create_engine(
        settings.sqlalchemy_url(),
        pool_size=5,  # what a delivery has in hand at once; who needs fewer opens fewer
        max_overflow=4,
        pool_pre_ping=True,
        connect_args={
            "application_name": name,
            "connect_timeout": CONNECT_TIMEOUT_S,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
            "options": "-c timezone=UTC -c client_connection_check_interval=1000 -c lock_timeout=30s",
        },
    )


def open_redis(settings: Settings) -> redis.Redis:
    """Return a client that never waits for ever: one short retry, then the error of redis-py."""
    return redis.Redis.from_url(
        settings.redis_url.get_secret_value(),
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_keepalive=True,
        health_check_interval=15,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), retries=1),
    )


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
