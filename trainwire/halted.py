"""Which drains refuse to go on; Redis is asked for a moment only, because this is an extra."""

from __future__ import annotations

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from schemas.routes import HALTED_KEY

PATIENCE_S = 1.0


def halted_streams(redis_url: str | None) -> dict[str, str]:
    """Return stream -> reason; empty where Redis is not known or does not answer."""
    if redis_url is None:
        return {}
    try:
        client = redis.Redis.from_url(
            redis_url, socket_connect_timeout=PATIENCE_S, socket_timeout=PATIENCE_S, retry=Retry(NoBackoff(), 0)
        )
    except ValueError:
        return {}
    try:
        found = client.hgetall(HALTED_KEY)
    except redis.RedisError:
        return {}
    finally:
        client.close()
    return {_text(stream): _text(reason) for stream, reason in found.items()}


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
