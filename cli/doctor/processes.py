"""Beat and the workers: is one active, is every queue read, and is what is read also done?"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, cast

import redis
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from trainwire.cli.answering import answering_workers
from trainwire.schemas.keys import (
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


def look(client: redis.Redis, settings: Settings) -> Findings:
    """Yield what is found; nothing where Redis is away, which another part says."""
    with suppress(RedisError, OperationalError):
        yield _beat(client)
        readers = _readers(settings)
        for queue in _needed(settings):
            found = cast("bytes", client.type(queue)).decode()
            if found not in {"list", "none"}:
                says = f"the key {queue} is a {found}: workers cannot read their orders"
                yield PART.error(f"queue-{queue}", says, f"find what wrote it, then RENAME {queue} {queue}-old")
                continue
            yield _queue(queue, readers.get(queue, []), _expired_s(client, queue))


def _beat(client: redis.Redis) -> Finding:
    start = "start one: python -m trainwire.workers beat"
    ticks = [int(at_ms) for at_ms in client.hvals(BEAT_TICKS_KEY)]
    holder: Any = client.get(BEAT_LEASE_KEY)
    if holder is None:
        return PART.error(
            "beat", "no beat is active: what failed is not tried again, dead trainers go unseen", start
        )
    age_s = client.time()[0] - max(ticks, default=0) / 1000
    name = holder.decode(errors="replace")
    if age_s > LATE_S:
        says = f"the active beat ({name}) has sent no tick for {age_s:,.0f} s"
        return PART.error("beat", says, "look at its log, and start it again")
    return PART.ok("beat", f"{name} is active")


def _readers(settings: Settings) -> dict[str, list[str]]:
    readers: dict[str, list[str]] = {}
    for worker, queues in answering_workers(settings, ANSWER_WITHIN_S).items():
        for queue in queues:
            readers.setdefault(queue, []).append(worker)
    return readers


def _needed(settings: Settings) -> list[str]:
    of_sinks = [sink.queue for sink in sinks_for(settings)]
    return [INGEST_QUEUE, BEAT_QUEUE, NOTIFY_QUEUE, CHECKPOINT_QUEUE, *of_sinks]


def _queue(queue: str, workers: list[str], expired_s: float) -> Finding:
    check = f"queue-{queue}"
    if not workers:
        says = f"no worker that answers reads the queue {queue}"
        return PART.error(check, says, f"python -m trainwire.workers worker --queues {queue}")
    if expired_s > LATE_S:
        names = ", ".join(sorted(workers))
        says = f"orders in the queue {queue} ran out {expired_s:,.0f} s ago, and {names} should have taken them"
        return PART.error(check, says, "start these workers again, and look at their logs; or add a worker")
    return PART.ok(check, f"{queue} is read by {', '.join(sorted(workers))}")


def _expired_s(client: redis.Redis, queue: str) -> float:
    """Return for how long the next order of a queue has been worth nothing; 0 where it is still good."""
    raw: Any = client.lindex(queue, -1)
    with suppress(TypeError, ValueError, KeyError):
        expires = datetime.fromisoformat(json.loads(raw)["headers"]["expires"])
        return max(0.0, time.time() - expires.replace(tzinfo=expires.tzinfo or UTC).timestamp())
    return 0.0
