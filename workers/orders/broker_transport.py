"""kombu's Redis transport with a check that drops messages which are not valid work orders.

Without the check a message that is not JSON, or lacks a field, raises an exception in kombu's event loop and ends
the worker.
"""

from __future__ import annotations

import time
from typing import Any, Final

import redis
import structlog
from kombu.transport import redis as kombu_redis

from trainwire.schemas.keys import QUEUES, echo_queue
from trainwire.workers.orders.order_format import WrongOrder, check_order, sender_of

log = structlog.get_logger("trainwire.workers.orders.broker_transport")

LOG_EVERY_S: Final = 1.0
"""Minimum interval in seconds between two log lines about dropped messages."""
_ECHO_QUEUES: Final = echo_queue("")


class DropLog:
    """Logs dropped messages: at most one per second, with the number of those that were not logged."""

    def __init__(self) -> None:
        self._next_at = 0.0
        self._unlogged = 0

    def note(self, queue: str, raw: bytes, reason: str) -> None:
        """Log a dropped message, or only count it if another one was logged less than a second ago."""
        now = time.monotonic()
        if now < self._next_at:
            self._unlogged += 1
            return
        self._next_at = now + LOG_EVERY_S
        log.error(
            "order.dropped",
            queue=queue,
            reason=reason[:500],
            size_bytes=len(raw),
            begins_with=raw[:200].decode("utf-8", "backslashreplace"),
            dropped_before=self._unlogged,
            **sender_of(raw),
        )
        self._unlogged = 0


class CheckedRedis(redis.Redis):
    """A Redis client whose BRPOP returns only valid work orders."""

    drops = DropLog()

    def parse_response(self, connection: Any, command_name: str | bytes, **options: Any) -> Any:
        """Return the reply of Redis.

        If BRPOP received an invalid message, drop it and return None, like after a timeout.
        """
        reply = super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call]
        if command_name != "BRPOP" or not reply:
            return reply
        name, raw = reply
        queue = name.decode("utf-8", "backslashreplace")
        try:
            check_order(raw, queue)
        except WrongOrder as exc:
            self.drops.note(queue, raw, str(exc))
            return None
        return reply


class Channel(kombu_redis.Channel):
    """kombu's channel, which uses `CheckedRedis` as its client."""

    def _get_client(self) -> type[redis.Redis]:
        super()._get_client()  # type: ignore[misc] # checks the version of redis-py
        return CheckedRedis


class Transport(kombu_redis.Transport):
    """kombu's transport, which uses the checking `Channel`."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str | None) -> None:
        """Pass a message to its consumer, but drop an invalid one of remote control (`celery inspect`)."""
        if queue is None or queue in QUEUES or queue.startswith(_ECHO_QUEUES):
            super()._deliver(message, queue)
            return
        try:
            super()._deliver(message, queue)
        except (LookupError, TypeError, ValueError, AttributeError) as exc:
            raw = repr(message)[:1000].encode()
            CheckedRedis.drops.note(queue, raw, f"{type(exc).__name__}: {exc}")
