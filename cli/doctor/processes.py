"""Checks of Celery: beat is active, each queue has a worker, and no work orders have expired."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, cast

import redis
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from trainwire.cli.worker_queues import answering_workers
from trainwire.schemas.keys import (
    ALERT_QUEUE,
    BEAT_LEASE_KEY,
    BEAT_QUEUE,
    BEAT_TICKS_KEY,
    CHECKPOINT_QUEUE,
    INGEST_QUEUE,
    NOTIFY_QUEUE,
)
from trainwire.stack.database import sinks_for
from trainwire.workers.findings import Finding, Findings, Part
from trainwire.workers.settings import Settings

ANSWER_WITHIN_S: Final = 1.5
LATE_S: Final = 30.0
PART: Final = Part("processes")


def check(client: redis.Redis, settings: Settings) -> Findings:
    """Yield the findings about Celery beat and the workers.

    Yields nothing if Redis cannot be reached, because `redis_server.check` reports that.
    """
    with suppress(RedisError, OperationalError):
        yield _beat(client)
        readers = _readers(settings)
        sink_queues = [sink.queue for sink in sinks_for(settings)]
        alert_queues = [] if settings.alert_rules is None else [ALERT_QUEUE]
        for queue in (INGEST_QUEUE, BEAT_QUEUE, NOTIFY_QUEUE, CHECKPOINT_QUEUE, *sink_queues, *alert_queues):
            found = cast("bytes", client.type(queue)).decode()
            if found not in {"list", "none"}:
                text = f"the key {queue} is a {found}: workers cannot read their orders"
                remedy = f"find the client that wrote it, then RENAME {queue} {queue}-old"
                yield PART.error(f"queue-{queue}", text, remedy)
                continue
            yield _queue(queue, readers.get(queue, []), _expired_s(client, queue))


def _beat(client: redis.Redis) -> Finding:
    start = "start one: python -m trainwire.workers beat"
    ticks = [int(at_ms) for at_ms in client.hvals(BEAT_TICKS_KEY)]
    holder: Any = client.get(BEAT_LEASE_KEY)
    if holder is None:
        text = "no beat is active: failed work is not retried, and lost jobs are not noticed"
        return PART.error("beat", text, start)
    age_s = client.time()[0] - max(ticks, default=0) / 1000
    name = holder.decode(errors="replace")
    if age_s > LATE_S:
        text = f"the active beat ({name}) has sent no tick for {age_s:,.0f} s"
        return PART.error("beat", text, "read its log, and restart it")
    return PART.ok("beat", f"{name} is active")


def _readers(settings: Settings) -> dict[str, list[str]]:
    readers: dict[str, list[str]] = {}
    for worker, queues in answering_workers(settings, ANSWER_WITHIN_S).items():
        for queue in queues:
            readers.setdefault(queue, []).append(worker)
    return readers


def _queue(queue: str, workers: list[str], expired_s: float) -> Finding:
    check = f"queue-{queue}"
    if not workers:
        text = f"no worker that answers consumes the queue {queue}"
        return PART.error(check, text, f"python -m trainwire.workers worker --queues {queue}")
    if expired_s > LATE_S:
        names = ", ".join(sorted(workers))
        text = f"orders in the queue {queue} expired {expired_s:,.0f} s ago, and {names} should have taken them"
        return PART.error(check, text, "restart these workers, and read their logs; or add a worker")
    return PART.ok(check, f"{queue} is consumed by {', '.join(sorted(workers))}")


def _expired_s(client: redis.Redis, queue: str) -> float:
    """Return for how many seconds the next work order in the queue has been expired.

    Returns 0 if it has not expired, or if there is no readable order.
    """
    raw: Any = client.lindex(queue, -1)
    with suppress(TypeError, ValueError, KeyError, RecursionError):
        expires = datetime.fromisoformat(json.loads(raw)["headers"]["expires"])
        return max(0.0, time.time() - expires.replace(tzinfo=expires.tzinfo or UTC).timestamp())
    return 0.0
