"""The Celery tasks that drain streams, and those that find streams to drain."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial
from typing import Final

import structlog

from trainwire.schemas import keys
from trainwire.schemas.keys import FREQUENT_KINDS, Kind
from trainwire.workers.app import app
from trainwire.workers.drain.drain import Drain
from trainwire.workers.drain.stream import IngestStream
from trainwire.workers.errors import MostlyInvalid, Unavailable
from trainwire.workers.orders.order_sender import (
    has_waiting_orders,
    order_deliveries,
    order_drain,
    order_notify,
    order_verification,
)
from trainwire.workers.resources import Resources, process_resources
from trainwire.workers.streams.linger import DrainShare, linger_s
from trainwire.workers.streams.outage_log import OutageLog
from trainwire.workers.streams.stray_streams import drain_jammed, drain_stray_streams
from trainwire.workers.streams.sweep import overdue, publish_hold, publish_shards
from trainwire.workers.tasks import task

log = structlog.get_logger("trainwire.workers.drain_tasks")

REST_UNAVAILABLE_S = 0.4
"""Pause in seconds before the next drain of a stream while Postgres does not accept connections."""
REST_HALTED_S = 1.0
"""Pause in seconds before the next drain of a halted stream.

It is short because each drain stores valid messages from behind the invalid head of the stream.
"""
REST_CRASHED_S = 2.0
"""Pause in seconds after a drain has crashed; the next drain searches for the entry that caused it."""
DRAIN_SOFT_LIMIT_S: Final = 75
DRAIN_HARD_LIMIT_S: Final = 90
"""Time limit of a drain in seconds: more than `find_poison_entry` takes (`workers.drain.poison_entries`)."""
UNAVAILABLE_LOG_EVERY_S: Final = 2.0
"""Minimum interval in seconds between two log lines about a stream that cannot be drained, in each process."""
_next_log_at: Final[dict[str, float]] = {}
"""Stream -> monotonic time of its next log line about an unavailable store."""
_drain_share: Final = DrainShare()
_sweep_outages: Final = OutageLog("sweep")


@app.task(name=keys.DRAIN_TASK, soft_time_limit=DRAIN_SOFT_LIMIT_S, time_limit=DRAIN_HARD_LIMIT_S)
def drain(kind: Kind, shard: int) -> None:
    """Drain one stream. After an error, no drain of this stream is ordered for one or two seconds."""
    resources = process_resources()
    stream = IngestStream(resources.streams, kind, shard)
    _drain_share.begin()
    try:
        _drain(resources, stream)
    except Unavailable as exc:
        _log_unavailable(stream.key, str(exc))
        _rest(stream, REST_UNAVAILABLE_S)
    except MostlyInvalid as exc:
        log.error("drain.halted", stream=stream.key, reason=str(exc), next_try_s=REST_HALTED_S)  # noqa: TRY400
        _rest(stream, REST_HALTED_S)
    except Exception as exc:
        # A bug, or an entry that triggers one: raised for the log, and shown to operators by `trainwire doctor`.
        with suppress(Unavailable):
            stream.halt(f"its drain fails with {type(exc).__name__}: {exc}")
        _rest(stream, REST_CRASHED_S)
        raise
    finally:
        _drain_share.end()


def _drain(resources: Resources, stream: IngestStream) -> None:
    """Drain one stream, and order the deliveries of its rows and the verification of its checkpoints.

    If the drain ended before the stream was empty, order another drain.
    """
    if stream.shard >= resources.settings.ingest_shards and not stream.has_entries():
        return  # creates no cursor for a shard that does not exist
    publish_changes = partial(order_notify, resources)
    may_linger = stream.kind in FREQUENT_KINDS
    drain_jammed(resources, stream, publish_changes)
    drained = Drain(
        resources.engine,
        stream,
        resources.settings,
        on_commit=publish_changes,
        has_waiting_orders=partial(has_waiting_orders, resources),
        linger_s=lambda entries: linger_s(_drain_share.share(), entries) if may_linger else 0.0,
    ).run()
    if drained.dead_lettered:
        log.warning("drain.dead_lettered", stream=stream.key, entries=drained.dead_lettered)
    if drained.more:
        order_drain(resources, stream.kind, stream.shard, is_rest=True)
    if drained.stored:
        order_deliveries(resources, stream.kind)
    if drained.stored and stream.kind == "checkpoints":
        order_verification(resources)


def _log_unavailable(stream: str, reason: str) -> None:
    now = time.monotonic()
    if now >= _next_log_at.get(stream, 0.0):
        _next_log_at[stream] = now + UNAVAILABLE_LOG_EVERY_S
        log.warning("drain.unavailable", stream=stream, reason=reason, next_try_s=REST_UNAVAILABLE_S)


def _rest(stream: IngestStream, seconds: float) -> None:
    with suppress(Unavailable):  # without Redis no drain can be ordered anyway
        stream.rest(seconds)


@task(keys.SWEEP_TASK, "sweep")
def sweep(resources: Resources) -> None:
    """Order overdue drains, and set the number of shards, if it is missing, and the hold: trainers read both."""
    shards = resources.settings.ingest_shards
    publish_shards(resources.streams, shards)
    publish_hold(resources.streams, resources.settings.redis_high_water)
    found = overdue(resources.streams, shards)
    _sweep_outages.note(found.unavailable)
    for kind, shard in found.streams:
        order_drain(resources, kind, shard)


@task(keys.STRAYS_TASK, "strays")
def drain_strays(resources: Resources) -> None:
    """Drain streams of shards that do not exist, move heartbeats from such shards, and limit the TTL of claims.

    A claim is the Redis key by which a source reserves its job and rank.
    """
    drain_stray_streams(resources, partial(order_notify, resources))
