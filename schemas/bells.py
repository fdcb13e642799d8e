"""Sends the work order "this stream has news" to the Celery workers, without importing Celery."""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from datetime import UTC, datetime
from typing import Any, Final

import kombu.transport.redis  # noqa: F401 - kombu would import it with the first order: see ingest.forks
import redis
from kombu.connection import Connection
from kombu.exceptions import KombuError
from kombu.messaging import Producer

from schemas.broker import broker_at
from schemas.routes import DRAIN_TASK, INGEST_QUEUE, ORDER_TTL_S, Kind

logger = logging.getLogger("trainwire.bells")

_TRANSPORT_OPTIONS: Final = {
    "socket_timeout": 5,  # without one, a half-open connection hangs for ever
    "socket_connect_timeout": 2,
    "priority_steps": [0],
}
_BELL_ERRORS: Final = (redis.RedisError, KombuError, OSError, ValueError, LookupError)
"""kombu raises the last two for addresses that it reads in another way than redis-py does."""


class Bells:
    """Sends orders over one connection of its own. A bell that fails never matters: beat rings again."""

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._connection: Any = None
        self._producer: Any = None

    def ring(self, kind: Kind, shard: int, ahead_s: float = 0.0) -> None:
        """Order a drain of one stream; a failure is logged for the curious and forgotten.

        `ahead_s` is how far other clocks are ahead of ours: an order expires by the clock of who reads it.
        """
        try:
            self._send(kind, shard, time.time() + ahead_s + ORDER_TTL_S)
        except _BELL_ERRORS as exc:
            logger.debug("no work order sent for %s of shard %s: %s", kind, shard, exc)
            self.close()

    def close(self) -> None:
        """Drop the connection; the next bell makes a new one."""
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            connection.release()

    def _send(self, kind: Kind, shard: int, expires_at: float) -> None:
        if self._producer is None:
            url, tls = broker_at(self._redis_url)
            self._connection = Connection(url, ssl=tls or False, transport_options=_TRANSPORT_OPTIONS)
            channel = self._connection.channel()  # unlike default_channel it does not retry for ever
            channel._after_fork = _leave_alone  # noqa: SLF001 - kombu has no setting for it
            self._producer = Producer(channel, serializer="json")
        order_id = str(uuid.uuid4())
        # As Celery does for a queue with a direct exchange: the default exchange, which needs no binding
        # in Redis and so survives a flush.
        self._producer.publish(
            [[kind, shard], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}],
            exchange="",
            routing_key=INGEST_QUEUE,
            headers=_headers(order_id, kind, shard, expires_at),
            correlation_id=order_id,
            reply_to="",
            delivery_mode=2,
            priority=0,
        )


def _leave_alone() -> None:
    """Stand for what kombu does to a channel in a child of multiprocessing, which has no use for it.

    It would close the connections, and wait for a lock that a thread of the parent held: for ever.
    """


def _headers(order_id: str, kind: Kind, shard: int, expires_at: float) -> dict[str, Any]:
    """Return the headers of Celery's message protocol 2 (docs.celeryq.dev, "Message Protocol")."""
    return {
        "lang": "py",
        "task": DRAIN_TASK,
        "id": order_id,
        "root_id": order_id,
        "parent_id": None,
        "group": None,
        "argsrepr": repr([kind, shard]),
        "kwargsrepr": "{}",
        "retries": 0,
        "eta": None,
        "expires": datetime.fromtimestamp(expires_at, UTC).isoformat(),
        "timelimit": [None, None],
        "origin": f"trainwire-{os.getpid()}@{socket.gethostname()}",
        "ignore_result": True,
    }
