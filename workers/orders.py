"""Work orders: a bell that says that one is on its way, and the order itself.

What nobody could order beat orders, which looks every few seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import redis
import structlog
from kombu.exceptions import OperationalError

from schemas.events import Event
from schemas.routes import (
    BELL_TTL_S,
    CHECKPOINT_QUEUE,
    DELIVER_QUEUE,
    DELIVER_TASK,
    DRAIN_TASK,
    INGEST_QUEUE,
    MLFLOW_QUEUE,
    NOTIFY_QUEUE,
    NOTIFY_TASK,
    ORDER_TTL_S,
    VERIFY_BELL_KEY,
    VERIFY_TASK,
    Kind,
    bell_key,
    delivery_bell_key,
    stream_key,
)
from workers.app import app
from workers.changes import Change
from workers.errors import Unavailable
from workers.notify import MAX_WAITING_ORDERS, events_of, payloads
from workers.resources import Resources
from workers.sinks.loki import LokiSink
from workers.sinks.mlflow import MlflowSink
from workers.streams import redis_errors

log = structlog.get_logger("workers.orders")

DELIVERY_QUEUES: Final = {LokiSink.name: DELIVER_QUEUE, MlflowSink.name: MLFLOW_QUEUE}
NOTIFY_RETRY: Final = {"max_retries": 1, "interval_start": 0}


def order_drain(resources: Resources, kind: Kind, shard: int) -> None:
    """Ring the bell of a stream and send the work order, unless one is on its way."""
    _ring(resources.streams, bell_key(stream_key(kind, shard)), DRAIN_TASK, [kind, shard], INGEST_QUEUE)


def order_deliveries(resources: Resources, kind: Kind | None = None) -> None:
    """Order deliveries to all sinks that there are, or to those that take what a drain of this kind has stored."""
    settings = resources.settings
    if settings.loki_enabled and kind in {None, "logs", "completions"}:
        order_delivery(resources, LokiSink.name)
    if settings.mlflow_tracking_uri is not None and kind in {None, "metrics", "completions"}:
        order_delivery(resources, MlflowSink.name)


def order_delivery(resources: Resources, sink: str) -> None:
    """Order a delivery to a sink, unless one is on its way."""
    _ring(resources.redis, delivery_bell_key(sink), DELIVER_TASK, [sink], DELIVERY_QUEUES[sink])


def order_verification(resources: Resources) -> None:
    """Order that new checkpoint files be verified, unless such an order is on its way."""
    _ring(resources.redis, VERIFY_BELL_KEY, VERIFY_TASK, [], CHECKPOINT_QUEUE)


def _ring(client: redis.Redis, bell: str, task: str, args: list[object], queue: str) -> None:
    """Set a bell and send its order; who finds it set leaves the order to whoever set it."""
    with redis_errors():
        rang = client.set(bell, 1, nx=True, ex=BELL_TTL_S)
    if rang:
        send_order(task, args, queue)


def order_notify(resources: Resources, changes: list[Change]) -> None:
    """Order that a drain's commit be announced."""
    announce(resources, partial(events_of, changes), len(changes))


def announce(resources: Resources, make_events: Callable[[], list[Event]], jobs: int) -> None:
    """Order that what was committed be announced. Nothing that happens here reaches who committed it.

    Who listens sees by the numbers of the next event what was not announced, and finds it in Postgres.
    """
    try:
        with redis_errors():
            waiting = resources.redis.llen(NOTIFY_QUEUE)
        if waiting >= MAX_WAITING_ORDERS:
            log.warning("notify.dropped", jobs=jobs, reason=f"{waiting} orders wait for a worker")
            return
        for payload in payloads(make_events()):
            shown = f"events of {jobs:,} jobs, {len(payload):,} bytes"  # in Flower, in place of all of them
            send_order(NOTIFY_TASK, [payload.decode()], NOTIFY_QUEUE, retry_policy=NOTIFY_RETRY, argsrepr=shown)
    except Unavailable as exc:
        log.warning("notify.dropped", jobs=jobs, reason=str(exc))
    except Exception:
        log.exception("notify.failed", jobs=jobs)


def send_order(task: str, args: list[object], queue: str, **options: Any) -> None:
    """Send a work order that expires; raise `Unavailable` when Redis does not take it."""
    try:
        app.send_task(task, args=args, queue=queue, expires=ORDER_TTL_S, ignore_result=True, **options)
    except OperationalError as exc:
        raise Unavailable(f"Redis took no order: {exc}") from exc
