"""kombu's Redis transport, which drops what is no work order before kombu or Celery read any of it.

Left alone, a message that is not JSON, or lacks a field, raises in the event loop and ends the worker.
"""

from __future__ import annotations

import time
from typing import Any, Final

import redis
import structlog
from kombu.transport import redis as kombu_redis

from trainwire.schemas.keys import QUEUES, echo_queue
from trainwire.workers.order_checks import WrongOrder, check_order, sender_of

log = structlog.get_logger("trainwire.workers.broker_transport")

LOG_EVERY_S: Final = 1.0
"""A queue full of rubbish is one line a second."""
_ECHO_QUEUES: Final = echo_queue("")


class DropLog:
    """Logs dropped messages: the first one in full, of those that follow within a second how many there were."""

    def __init__(self) -> None:
        self._next_at = 0.0
        self._unlogged = 0

    def note(self, queue: str, raw: bytes, why: str) -> None:
        """Log, or count, a message that was dropped."""
        now = time.monotonic()
        if now < self._next_at:
            self._unlogged += 1
            return
        self._next_at = now + LOG_EVERY_S
        log.error(
            "order.dropped",
            queue=queue,
            reason=why[:500],
            size_bytes=len(raw),
            begins_with=raw[:200].decode("utf-8", "backslashreplace"),
            dropped_before=self._unlogged,
            **sender_of(raw),
        )
        self._unlogged = 0


class CheckedRedis(redis.Redis):
    """A client that leaves out of BRPOP's replies what is no order of its queue."""

    drops = DropLog()

    def parse_response(self, connection: Any, command_name: str | bytes, **options: Any) -> Any:
        """Return the reply; for a dropped message None, as when BRPOP has waited in vain."""
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
    """Uses the client that checks."""

    def _get_client(self) -> type[redis.Redis]:
        super()._get_client()  # type: ignore[misc] # checks the version of redis-py
        return CheckedRedis


class Transport(kombu_redis.Transport):
    """Uses the channel that checks."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str | None) -> None:
        """Hand a message to its consumer; drop one of remote control (`celery inspect`) that nobody can read."""
        if queue is None or queue in QUEUES or queue.startswith(_ECHO_QUEUES):
            super()._deliver(message, queue)
            return
        try:
            super()._deliver(message, queue)
        except (LookupError, TypeError, ValueError, AttributeError) as exc:
            raw = repr(message)[:1000].encode()
            CheckedRedis.drops.note(queue, raw, f"{type(exc).__name__}: {exc}")
