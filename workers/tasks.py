"""The Celery tasks: each decodes its order, calls one function, returns."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial
from typing import Any, Final

import structlog
from kombu.exceptions import OperationalError

from schemas.events import decode_events
from schemas.routes import (
    BELL_TTL_S,
    DELIVER_QUEUE,
    DELIVER_TASK,
    DELIVER_TICK_TASK,
    DRAIN_TASK,
    ECHO_TASK,
    INGEST_QUEUE,
    NOTIFY_QUEUE,
    NOTIFY_TASK,
    ORDER_TTL_S,
    SWEEP_TASK,
    Kind,
    bell_key,
    delivery_bell_key,
    echo_key,
    stream_key,
)
from workers.app import app
from workers.backoff import Backoff
from workers.changes import Change
from workers.deliver import Delivery
from workers.drain import Drain
from workers.errors import MostlyInvalid, Unavailable
from workers.log_backlog import LogBacklog
from workers.notify import MAX_WAITING_ORDERS, events_of, payloads, publish
from workers.resources import Resources, process_resources
from workers.sinks.loki import LokiSink
from workers.sinks.loki_http import loki_http
from workers.streams import IngestStream, redis_errors
from workers.sweep import overdue, publish_hold

log = structlog.get_logger("workers.tasks")

REST_UNAVAILABLE_S = 2
REST_HALTED_S = 30
ECHO_TTL_S = 300
NOTIFY_RETRY: Final = {"max_retries": 1, "interval_start": 0}


@app.task(name=DRAIN_TASK)
def drain(kind: Kind, shard: int) -> None:
    """Drain one stream, and order the rest if the time slice was too short for it."""
    resources = process_resources()
    stream = IngestStream(resources.redis, kind, shard)
    try:
        announce = partial(order_notify, resources)
        drained = Drain(resources.engine, stream, resources.settings, on_commit=announce).run()
        if drained.dead_lettered:
            log.warning("drain.dead_lettered", stream=stream.key, entries=drained.dead_lettered)
        if drained.more:
            order_drain(resources, kind, shard)
        if drained.stored and kind in {"logs", "completions"}:
            order_delivery(resources)
    except Unavailable as exc:
        log.warning("drain.unavailable", stream=stream.key, reason=str(exc), next_try_s=REST_UNAVAILABLE_S)
        _rest(stream, REST_UNAVAILABLE_S)
    except MostlyInvalid as exc:
        log.error("drain.halted", stream=stream.key, reason=str(exc), next_try_s=REST_HALTED_S)  # noqa: TRY400
        _rest(stream, REST_HALTED_S)
    except Exception as exc:
        # Our own mistake, and it will come again: loud in the log, and where operators look.
        with suppress(Unavailable):
            stream.halt(f"its drain fails with {type(exc).__name__}: {exc}")
        _rest(stream, REST_HALTED_S)
        raise


@app.task(name=SWEEP_TASK)
def sweep() -> None:
    """Order a drain of every stream that has news and no bell; tell trainers whether Redis has room."""
    resources = process_resources()
    try:
        publish_hold(resources.redis, resources.settings.redis_high_water)
        for kind, shard in overdue(resources.redis, resources.settings.ingest_shards):
            order_drain(resources, kind, shard)
    except Unavailable as exc:
        log.warning("sweep.unavailable", reason=str(exc))


@app.task(name=DELIVER_TICK_TASK)
def deliver_what_is_due() -> None:
    """Order a delivery: of rows that nobody ordered, or of what waited for its sink to come back."""
    try:
        order_delivery(process_resources())
    except Unavailable as exc:
        log.warning("deliver_tick.unavailable", reason=str(exc))


@app.task(name=DELIVER_TASK)
def deliver(sink: str) -> None:
    """Deliver what a sink has not confirmed, and order the rest if the time slice was too short for it."""
    resources = process_resources()
    settings = resources.settings
    time.sleep(settings.loki_linger_s)  # gathers lines: while the bell is there nobody orders again
    try:
        with redis_errors():
            resources.redis.delete(delivery_bell_key(sink))
        report = Delivery(
            resources.engine,
            LogBacklog(resources.engine, sink),
            LokiSink(loki_http(settings)),
            slice_s=settings.delivery_slice_s,
            backoff=Backoff(cap_s=settings.delivery_backoff_cap_s),
        ).run()
        if report.refused:
            log.warning("delivery.refused", sink=sink, rows=report.refused)
        if report.more:
            order_delivery(resources)
    except Unavailable as exc:
        log.warning("delivery.unavailable", sink=sink, reason=str(exc))


@app.task(name=NOTIFY_TASK)
def notify(events: str) -> None:
    """Publish events; they are not kept for a Redis that is away."""
    try:
        publish(process_resources().redis, decode_events(events))
    except Unavailable as exc:
        log.warning("notify.unavailable", reason=str(exc))


@app.task(name=ECHO_TASK)
def echo(worker: str) -> None:
    """Show the worker that its orders come back (see `workers.watchdog`)."""
    process_resources().redis.set(echo_key(worker), 1, ex=ECHO_TTL_S)


def order_drain(resources: Resources, kind: Kind, shard: int) -> None:
    """Ring the bell of a stream and send the work order, unless one is on its way."""
    with redis_errors():
        rang = resources.redis.set(bell_key(stream_key(kind, shard)), 1, nx=True, ex=BELL_TTL_S)
    if rang:
        send_order(DRAIN_TASK, [kind, shard], INGEST_QUEUE)


def order_delivery(resources: Resources) -> None:
    """Order a delivery to Loki, unless one is on its way or there is to be none."""
    if not resources.settings.loki_enabled:
        return
    with redis_errors():
        rang = resources.redis.set(delivery_bell_key(LokiSink.name), 1, nx=True, ex=BELL_TTL_S)
    if rang:
        send_order(DELIVER_TASK, [LokiSink.name], DELIVER_QUEUE)


def order_notify(resources: Resources, changes: list[Change]) -> None:
    """Order that a commit be announced. Nothing that happens here reaches the drain, whose rows are committed.

    Who listens sees by the numbers of the next event what was not announced, and finds it in Postgres.
    """
    try:
        with redis_errors():
            waiting = resources.redis.llen(NOTIFY_QUEUE)
        if waiting >= MAX_WAITING_ORDERS:
            log.warning("notify.dropped", jobs=len(changes), reason=f"{waiting} orders wait for a worker")
            return
        for payload in payloads(events_of(changes)):
            send_order(NOTIFY_TASK, [payload.decode()], NOTIFY_QUEUE, retry_policy=NOTIFY_RETRY)
    except Unavailable as exc:
        log.warning("notify.dropped", jobs=len(changes), reason=str(exc))
    except Exception:
        log.exception("notify.failed", jobs=len(changes))


def send_order(task: str, args: list[object], queue: str, **options: Any) -> None:
    """Send a work order that expires; raise `Unavailable` when Redis does not take it."""
    try:
        app.send_task(task, args=args, queue=queue, expires=ORDER_TTL_S, ignore_result=True, **options)
    except OperationalError as exc:
        raise Unavailable(f"Redis took no order: {exc}") from exc


def _rest(stream: IngestStream, seconds: int) -> None:
    with suppress(Unavailable):  # without Redis nobody can order a drain anyway
        stream.rest(seconds)
