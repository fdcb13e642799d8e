"""Finds streams that have entries and no ordered drain, because the order was lost or never sent."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import redis

from trainwire.schemas.keys import HOLD_KEY, KINDS, SHARDS_KEY, Kind, jammed_key, ordered_key, stream_key
from trainwire.schemas.streams.servers import ask_each, fullest_memory
from trainwire.workers.drain.drain import Drain
from trainwire.workers.drain.stream import IngestStream, redis_errors
from trainwire.workers.resources import Resources
from trainwire.workers.streams.stray_streams import OnCommit, drain_jammed, errors_logged

_HOLD_TTL_S = 10
_RELEASE_AT = 0.9
"""The hold ends below this share of the high-water mark, so that it does not switch on and off all the time."""


def all_streams(shards: int) -> list[tuple[Kind, int]]:
    """Return all streams as (kind, shard).

    Checkpoints and completions come first, because they are few and urgent.
    """
    order: list[Kind] = sorted(KINDS, key=lambda kind: kind in {"logs", "metrics"})
    return [(kind, shard) for kind in order for shard in range(shards)]


@dataclass(frozen=True, slots=True)
class Overdue:
    """The streams that need a drain, and the Redis servers that did not answer (host:port -> reason)."""

    streams: list[tuple[Kind, int]]
    unavailable: Mapping[str, str]


def overdue(client: redis.Redis, shards: int) -> Overdue:
    """Return the streams that have entries and no ordered drain.

    A stream counts as having entries also if it was renamed because its last id was in the future, and still has
    entries under its new key. Raises `Unavailable` if Redis does not answer.
    """
    questions = {}
    for kind, shard in all_streams(shards):
        key = stream_key(kind, shard)
        jammed = jammed_key(kind, shard)
        questions[kind, shard] = [("XLEN", key), ("XLEN", jammed), ("EXISTS", ordered_key(key))]
    with redis_errors():
        found = ask_each(client, questions)
    replies = found.replies.items()
    waiting = {stream for stream, (length, jammed, ordered) in replies if (length or jammed) and not ordered}
    return Overdue([stream for stream in questions if stream in waiting], found.unavailable)


def publish_shards(client: redis.Redis, shards: int) -> None:
    """Set the Redis key with the number of shards if it is missing, for example after FLUSHALL.

    Without it trainers use the default number. A full Redis does not set it. Raises `Unavailable` if Redis does
    not answer.
    """
    with redis_errors(), suppress(redis.OutOfMemoryError):
        client.set(SHARDS_KEY, shards, nx=True)


def publish_hold(client: redis.Redis, high_water: float) -> None:
    """Set the hold if the memory of Redis is above its high-water mark; delete it once memory is clearly below.

    While the hold exists, trainers keep messages back. If the server of the hold in a cluster does not answer,
    nothing is set: trainers cannot read the hold, and keep messages back anyway. Raises `Unavailable` if Redis
    does not answer.
    """
    with redis_errors():
        used, limit = fullest_memory(client)
        if limit and used > high_water * limit:
            with suppress(redis.OutOfMemoryError):  # a full Redis refuses the messages of trainers anyway
                ask_each(client, {HOLD_KEY: [("SET", HOLD_KEY, used, "EX", _HOLD_TTL_S)]})
        elif not limit or used < high_water * limit * _RELEASE_AT:
            ask_each(client, {HOLD_KEY: [("DEL", HOLD_KEY)]})


def drain_everything(resources: Resources, on_commit: OnCommit = None) -> None:
    """Drain all streams once without work orders, for a Redis that does not accept orders.

    Each drain ends after its time slice (`drain_slice_s`). Streams that cannot be drained are logged and skipped.
    `on_commit` is passed to each drain.
    """
    for kind, shard in all_streams(resources.settings.ingest_shards):
        stream = IngestStream(resources.streams, kind, shard)
        drain_jammed(resources, stream, on_commit)
        with errors_logged(stream):
            if stream.has_entries():
                Drain(resources.engine, stream, resources.settings, on_commit=on_commit).run()
