"""Which drains refuse to go on; Redis is asked for a moment only, because this is an extra."""

from __future__ import annotations

from redis.backoff import NoBackoff
from redis.retry import Retry

from trainwire.schemas.keys import HALTED_KEY
from trainwire.schemas.streams.clients import STREAM_ERRORS, open_streams

PATIENCE_S = 1.0


def halted_streams(redis_url: str | None) -> dict[str, str]:
    """Return stream -> reason; empty where Redis is not known or does not answer."""
    if redis_url is None:
        return {}
    try:
        client = open_streams(
            redis_url, socket_connect_timeout=PATIENCE_S, socket_timeout=PATIENCE_S, retry=Retry(NoBackoff(), 0)
        )
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
