"""Sends work orders.

For each waiting order of a drain, delivery, verification or alert evaluation there is a Redis key with a TTL, so
that the order is not sent twice. Beat searches for such overdue work every few seconds, and so replaces orders
that could not be sent, or were lost. Orders that publish events are not replaced.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, cast

import redis
import structlog

from trainwire.schemas import keys
from trainwire.schemas.events import Event
from trainwire.schemas.keys import Kind
from trainwire.schemas.sinks import SINKS
from trainwire.schemas.streams.servers import ask_each
from trainwire.workers.drain.changes import Change
from trainwire.workers.drain.stream import redis_errors
from trainwire.workers.errors import Unavailable
from trainwire.workers.events.notify import MAX_WAITING_ORDERS, events_of, payloads, with_subscribers
from trainwire.workers.orders.order_format import encode_order
from trainwire.workers.resources import Resources
from trainwire.workers.sinks.plugin import sinks_on
from trainwire.workers.streams.sweep import all_streams

log = structlog.get_logger("trainwire.workers.orders.order_sender")

MIN_WAITING_DRAINS: Final = 32
"""No drain is ordered while this number of orders waits, or twice the number of streams if that is higher."""
_ORDER_ONCE: Final = """
if redis.call('SET', KEYS[1], 1, 'NX', 'PX', ARGV[1]) and redis.call('LLEN', KEYS[2]) < tonumber(ARGV[2]) then
  redis.call('LPUSH', KEYS[2], ARGV[3])
  return 0
end
return math.max(1, redis.call('PTTL', KEYS[1]))
"""


def order_drain(resources: Resources, kind: Kind, shard: int, *, is_rest: bool = False) -> float:
    """Order the drain of a stream unless an order is pending or a drain runs; return 0 if an order was sent.

    Otherwise, return the seconds until the key of the pending order expires; a running drain may renew or delete
    the key.

    No order is sent while many orders wait: workers are busy, and an order for this stream is probably among them.
    If it was lost, a later call sends one. Raises `Unavailable` if Redis does not answer.

    Args:
        resources: the connections and settings of this process.
        kind: the kind of messages in the stream.
        shard: the shard of the stream.
        is_rest: True if the caller is the running drain, whose time slice ended before the stream was empty. Then
            an order is always sent.
    """
    key = keys.ordered_key(keys.stream_key(kind, shard))
    most_waiting = max(MIN_WAITING_DRAINS, 2 * len(keys.KINDS) * resources.settings.ingest_shards)
    order = _encode(keys.DRAIN_TASK, [kind, shard], keys.INGEST_QUEUE)
    with redis_errors():
        if is_rest:
            resources.streams.set(key, 1, px=keys.DRAIN_ORDERED_TTL_MS)
        elif resources.stream_client is None:  # in one round trip: each message waits for it
            arguments = (key, keys.INGEST_QUEUE, keys.DRAIN_ORDERED_TTL_MS, most_waiting, order)
            return int(cast("int", resources.redis.eval(_ORDER_ONCE, 2, *cast("Any", arguments)))) / 1000
        elif (
            not resources.streams.set(key, 1, nx=True, px=keys.DRAIN_ORDERED_TTL_MS)
            or resources.redis.llen(keys.INGEST_QUEUE) >= most_waiting
        ):
            return max(1, resources.streams.pttl(key)) / 1000
        resources.redis.lpush(keys.INGEST_QUEUE, order)
    return 0.0


def has_waiting_orders(resources: Resources) -> bool:
    """Return whether further drains or orders of beat wait, which the same workers execute."""
    pipeline = resources.redis.pipeline(transaction=False)
    for queue in (keys.INGEST_QUEUE, keys.BEAT_QUEUE):
        pipeline.llen(queue)
    with redis_errors():
        return any(pipeline.execute())


def order_deliveries(resources: Resources, kind: Kind | None = None) -> None:
    """Order deliveries to all sinks that are on or, with `kind`, to those that messages of this kind concern."""
    for sink in sinks_on(resources.settings):
        if kind in {None, sink.kind, "completions"}:  # a completion has a traceback, and ends an attempt
            order_delivery(resources, sink.name)


def order_delivery(resources: Resources, sink: str) -> None:
    """Send an order for a delivery to a sink, unless one is waiting already."""
    _order_once(resources.redis, keys.delivery_ordered_key(sink), keys.DELIVER_TASK, [sink], SINKS[sink].queue)


def order_verification(resources: Resources) -> None:
    """Send the order that verifies new checkpoint files, unless it is waiting already."""
    _order_once(resources.redis, keys.VERIFY_ORDERED_KEY, keys.VERIFY_TASK, [], keys.CHECKPOINT_QUEUE)


def order_alerts(resources: Resources) -> None:
    """Send the order that evaluates alert rules, unless it is waiting already."""
    _order_once(resources.redis, keys.ALERTS_ORDERED_KEY, keys.ALERT_TASK, [], keys.ALERT_QUEUE)


def _order_once(client: redis.Redis, key: str, task: str, args: list[object], queue: str) -> None:
    """Send a work order unless the Redis key `key` exists, which means that one is waiting; else set the key."""
    with redis_errors():
        is_first = client.set(key, 1, nx=True, ex=keys.ORDERED_TTL_S)
    if is_first:
        send_order(client, task, args, queue)


def order_anew(resources: Resources, queues: Collection[str]) -> None:
    """Send orders for `queues` again, because a killed worker may have lost them; a duplicate is harmless.

    For drains, only the keys of pending orders are deleted: the stream watch of a starting worker then sends the
    orders at once.
    """
    if keys.INGEST_QUEUE in queues:
        streams = all_streams(resources.settings.ingest_shards)
        ordered = [keys.ordered_key(keys.stream_key(*stream)) for stream in streams]
        with redis_errors():
            ask_each(resources.streams, {key: [("DEL", key)] for key in ordered})
    for sink in sinks_on(resources.settings):
        if sink.queue in queues:
            _order_again(resources.redis, keys.delivery_ordered_key(sink.name))
            order_delivery(resources, sink.name)
    if keys.CHECKPOINT_QUEUE in queues:
        _order_again(resources.redis, keys.VERIFY_ORDERED_KEY)
        order_verification(resources)
    if keys.ALERT_QUEUE in queues and resources.settings.alert_rules is not None:
        _order_again(resources.redis, keys.ALERTS_ORDERED_KEY)
        order_alerts(resources)


def _order_again(client: redis.Redis, key: str) -> None:
    with redis_errors():
        client.delete(key)


def order_notify(resources: Resources, changes: list[Change]) -> None:
    """Send the work order that publishes events about the changes of a transaction, if any has a subscriber.

    See `announce`.
    """
    try:
        followed = with_subscribers(resources.redis, changes)
    except Unavailable as exc:
        log.warning("notify.dropped", jobs=len(changes), reason=str(exc))
        return
    if followed:
        announce(resources, lambda: events_of(followed), len(followed))


def announce(resources: Resources, make_events: Callable[[], list[Event]], jobs: int) -> None:
    """Send the work orders that publish events about a committed transaction.

    Never raises: if Redis does not answer, or too many orders wait, the events are dropped with a log message. A
    client detects this by the row numbers in the next event, and reads the rows from Postgres.

    Args:
        resources: the connections and settings of this process.
        make_events: function that returns the events; not called if too many orders wait.
        jobs: number of jobs, for the log.
    """
    try:
        with redis_errors():
            waiting = resources.redis.llen(keys.NOTIFY_QUEUE)
        if waiting >= MAX_WAITING_ORDERS:
            log.warning("notify.dropped", jobs=jobs, reason=f"{waiting} orders wait for a worker")
            return
        for payload in payloads(make_events()):
            shown = f"events of {jobs:,} jobs, {len(payload):,} bytes"  # in Flower, in place of all of them
            send_order(resources.redis, keys.NOTIFY_TASK, [payload.decode()], keys.NOTIFY_QUEUE, shown)
    except Unavailable as exc:
        log.warning("notify.dropped", jobs=jobs, reason=str(exc))
    except Exception:
        log.exception("notify.failed", jobs=jobs)


def send_order(
    client: redis.Redis, task: str, args: Sequence[object], queue: str, shown: str | None = None
) -> None:
    """Append a work order that expires after `ORDER_TTL_S` to its queue.

    Does not use kombu, whose producer may raise `AttributeError` after a command that timed out.
    Raises `Unavailable` if Redis does not accept the order.

    Args:
        client: a client of the Redis server of work orders.
        task: the name of the task.
        args: the arguments of the task.
        queue: the queue of the workers that execute it.
        shown: text that Flower shows in place of the arguments.
    """
    with redis_errors():
        client.lpush(queue, _encode(task, args, queue, shown))


def _encode(task: str, args: Sequence[object], queue: str, shown: str | None = None) -> bytes:
    return encode_order(task, args, queue, time.time() + keys.ORDER_TTL_S, shown=shown)
