"""Reads the samples of the Prometheus exporter from Postgres and Redis, with few cheap queries."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, cast

import redis
from sqlalchemy import Connection, TextClause, text

from trainwire.schemas import prometheus_metrics as names
from trainwire.schemas.keys import BEAT_TICKS_KEY, HALTED_KEY, HOLD_KEY, KINDS, QUEUES, stream_key
from trainwire.schemas.prometheus_metrics import Metric
from trainwire.schemas.sinks import SINKS
from trainwire.schemas.streams.servers import Commands, ask_each, fullest_memory
from trainwire.schemas.tables import LIFTED_SQL
from trainwire.stores.rows.event_rows import values_of
from trainwire.workers.liveness.heartbeat_reader import recent_heartbeats
from trainwire.workers.sinks import cursors
from trainwire.workers.streams.sweep import all_streams

NEWEST_POINTS: Final = 20
"""Number of points to read per running job, because the last one may not contain every metric."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a Prometheus metric.

    For a histogram, `counts` contains the counts of the buckets, and `value` the sum.
    """

    metric: Metric
    labels: tuple[str, ...]
    value: float
    counts: tuple[int, ...] = ()


def redis_samples(client: redis.Redis, shards: int, streams_client: redis.Redis | None = None) -> Iterator[Sample]:
    """Yield the lengths of queues, the age of beat's last tick, memory use, the hold, and the state of streams.

    `client` is that of work orders; `streams_client` is given if the streams are on another Redis.
    """
    broker = client.pipeline(transaction=False)
    broker.time()
    broker.hvals(BEAT_TICKS_KEY)
    for queue in QUEUES:
        broker.llen(queue)
    (seconds, micros), ticks, *waiting_orders = broker.execute()
    now_ms = seconds * 1000 + micros // 1000
    if ticks:
        yield Sample(names.BEAT_AGE_SECONDS, (), max(0.0, (now_ms - max(map(int, ticks))) / 1000))
    for queue, waiting in zip(QUEUES, waiting_orders, strict=True):
        yield Sample(names.QUEUE_ORDERS, (queue,), float(waiting))
    yield from _stream_samples(streams_client or client, shards)


def _stream_samples(client: redis.Redis, shards: int) -> Iterator[Sample]:
    """Yield memory use, whether trainers hold messages back, and which shards have a server that answers.

    For the streams of these shards, also yield their lag and whether they are halted.
    """
    used, limit = fullest_memory(client)
    yield Sample(names.REDIS_USED_BYTES, (), float(used))
    yield Sample(names.REDIS_LIMIT_BYTES, (), float(limit))
    commands: dict[int | str, Commands] = {shard: _stream_commands(shard) for shard in range(shards)}
    commands[HOLD_KEY], commands[HALTED_KEY] = [("EXISTS", HOLD_KEY)], [("HKEYS", HALTED_KEY)]
    found = ask_each(client, commands)
    if HOLD_KEY in found.replies:
        yield Sample(names.REDIS_HOLD, (), float(found.replies[HOLD_KEY][0]))
    for shard in range(shards):
        yield Sample(names.SHARD_UP, (str(shard), found.servers[shard]), float(shard in found.replies))
    for kind, shard in all_streams(shards):
        labels = (kind, str(shard))
        if shard in found.replies:
            length, first = found.replies[shard][2 * KINDS.index(kind) :][:2]
            yield Sample(names.STREAM_LAG_ENTRIES, labels, float(length))
            yield Sample(names.STREAM_LAG_SECONDS, labels, _age_s(first, found.now_ms[shard]))
        if shard in found.replies and HALTED_KEY in found.replies:
            is_halted = stream_key(kind, shard).encode() in found.replies[HALTED_KEY][0]
            yield Sample(names.STREAM_HALTED, labels, float(is_halted))


def _stream_commands(shard: int) -> Commands:
    streams = [stream_key(kind, shard) for kind in KINDS]
    return [command for key in streams for command in (("XLEN", key), ("XRANGE", key, "-", "+", "COUNT", 1))]


def unreachable_shards(samples: Iterable[Sample]) -> dict[str, list[str]]:
    """Return the shards whose server did not answer, by server (host:port)."""
    found: dict[str, list[str]] = {}
    for sample in samples:
        if sample.metric is names.SHARD_UP and not sample.value:
            shard, server = sample.labels
            found.setdefault(server, []).append(shard)
    return found


def trainer_samples(client: redis.Redis, shards: int, within_s: float) -> Iterator[Sample]:
    """Yield the number of trainers whose last heartbeat is at most `within_s` seconds old, and sums over them.

    These are sums of unsent messages, spools and dropped items, and the largest spool, because there may be
    thousands of trainers. Yields nothing if a server of heartbeats in a cluster does not answer.
    """
    beats = recent_heartbeats(client, shards, within_s)
    if beats is None:
        return
    spooled = [beat.spooled_bytes or 0 for beat in beats]
    yield Sample(names.TRAINERS, (), float(len(beats)))
    yield Sample(names.UNSENT_MESSAGES, (), float(sum(beat.unsent or 0 for beat in beats)))
    yield Sample(names.SPOOL_BYTES, (), float(sum(spooled)))
    yield Sample(names.SPOOL_LARGEST_BYTES, (), float(max(spooled, default=0)))
    yield Sample(names.TRAINER_DROPPED_ITEMS, (), float(sum(beat.dropped or 0 for beat in beats)))


def postgres_samples(connection: Connection, sinks: list[str]) -> Iterator[Sample]:
    """Yield ingestion counters, missing and lost messages, dead letters, and jobs by status.

    Also yields the durations of drains and deliveries, and the lag of each of the `sinks`.
    """
    for stream, entries, duplicates, discarded, rows, size_bytes, counts, busy_s in connection.execute(_CURSORS):
        labels = _stream_labels(stream)
        yield Sample(names.INGEST_ENTRIES, labels, entries)
        yield Sample(names.INGEST_DUPLICATES, labels, duplicates)
        yield Sample(names.INGEST_DISCARDED, labels, discarded)
        yield Sample(names.INGEST_ROWS, labels, rows)
        yield Sample(names.INGEST_BYTES, labels, size_bytes)
        yield Sample(names.DRAIN_SECONDS, labels, busy_s, tuple(counts))
    for metric, query in (
        (names.MISSING_MESSAGES, _MISSING),
        (names.LOST_MESSAGES, _LOST),
        (names.DEAD_LETTERS, _DEAD_LETTERS),
        (names.JOBS, _JOBS),
    ):
        for *which, value in connection.execute(query):
            yield Sample(metric, tuple(which), float(value))
    for sink, counts, busy_s in connection.execute(_DELIVERIES):
        yield Sample(names.DELIVERY_SECONDS, (sink,), busy_s, tuple(counts))
    for sink in sinks:
        names_of_sink = {"sink": sink, "unsettled": cursors.unsettled(connection, sink)}
        behind, age_s, down_s, confirmed = connection.execute(_lag(sink), names_of_sink).one()
        yield Sample(names.SINK_LAG_ROWS, (sink,), float(behind))
        yield Sample(names.SINK_LAG_SECONDS, (sink,), age_s)
        yield Sample(names.SINK_DOWN_SECONDS, (sink,), down_s)
        yield Sample(names.SINK_CONFIRMED_ROWS, (sink,), float(confirmed))


def training_samples(connection: Connection, max_jobs: int, max_series: int) -> Iterator[Sample]:
    """Yield the newest value of each training metric of running and stalled jobs, at most `max_series` values.

    Examines the last `NEWEST_POINTS` points of the `max_jobs` jobs that sent messages last. Also yields how many
    values were left out.
    """
    newest: dict[tuple[str, str], float] = {}
    limits = {"jobs": max_jobs, "points": NEWEST_POINTS}
    for row in connection.execute(_TRAINING, limits).mappings():
        for name, value in values_of(row).items():
            # Rows are ordered newest first.
            newest.setdefault((str(row["job_id"]), name), _number(value))
    for labels, value in list(newest.items())[:max_series]:
        yield Sample(names.TRAINING_VALUE, labels, value)
    yield Sample(names.TRAINING_LEFT_OUT, (), float(max(0, len(newest) - max_series)))


def _age_s(first: Any, now_ms: int) -> float:
    if not first:
        return 0.0
    at_ms = int(cast("bytes", first[0][0]).partition(b"-")[0])
    return max(0.0, (now_ms - at_ms) / 1000)


def _stream_labels(stream: str) -> tuple[str, str]:
    shard, _, kind = stream.removeprefix("ingest:{").partition("}:")
    return kind, shard


def _number(value: Any) -> float:
    try:
        return float(value)  # "NaN" and "Infinity" too: docs/wire-format.md
    except (TypeError, ValueError):
        return math.nan


_CURSORS: Final = text(
    "SELECT stream, entries, duplicates, discarded, rows_in, bytes_in, drain_counts, drain_seconds "
    "FROM ingest_cursors"
)
_MISSING: Final = text(
    "SELECT kind, sum(greatest(coalesce(produced, 0) - last_seq, 0) + (SELECT coalesce(sum("
    "CAST(gap->>1 AS bigint) - CAST(gap->>0 AS bigint) + 1), 0) FROM jsonb_array_elements(missing) AS gap)) "
    "FROM source_positions WHERE is_behind GROUP BY kind"
)
_LOST: Final = text(
    "SELECT kind, sum((SELECT sum(CAST(gone->>1 AS bigint) - CAST(gone->>0 AS bigint) + 1) "
    "FROM jsonb_array_elements(lost) AS gone)) FROM source_positions WHERE lost <> '[]' GROUP BY kind"
)
_DEAD_LETTERS: Final = text(
    "SELECT CASE WHEN stream LIKE 'sink:%' THEN stream ELSE kind END AS stream, reason, count(*) "
    "FROM dead_letters GROUP BY 1, 2"
)
_JOBS: Final = text("SELECT status, count(*) FROM training_jobs GROUP BY status")
_DELIVERIES: Final = text("SELECT sink, counts, seconds FROM delivery_times")
_TRAINING: Final = text(
    f"SELECT points.job_id, {LIFTED_SQL}, extra_metrics FROM ("  # noqa: S608 - our own columns
    "SELECT id, row_number() OVER (ORDER BY last_seen_at DESC NULLS LAST, id) AS place FROM training_jobs "
    "WHERE status IN ('running', 'stalled') ORDER BY place LIMIT :jobs) AS running "
    "CROSS JOIN LATERAL (SELECT * FROM training_metrics WHERE job_id = running.id ORDER BY seq DESC LIMIT :points"
    ") AS points ORDER BY place, seq DESC"
)


def _lag(sink: str) -> TextClause:
    rows = SINKS[sink].rows
    return text(
        "SELECT CAST(coalesce(sum(behind), 0) AS bigint), CAST(coalesce(greatest(extract(epoch FROM now() - "  # noqa: S608 - our own names
        "min(oldest.created_at)), 0), 0) AS double precision), coalesce((SELECT CAST(greatest(extract(epoch "
        "FROM now() - down_since), 0) AS double precision) FROM sink_states WHERE sink = :sink "
        "AND down_since IS NOT NULL), 0), (SELECT CAST(coalesce(sum(confirmed_seq), 0) AS bigint) "
        "FROM delivery_cursors WHERE sink = :sink) FROM ("
        f"SELECT id, coalesce(confirmed_seq, 0) AS confirmed, {rows.last_seq} - coalesce(confirmed_seq, 0) "
        "AS behind FROM training_jobs LEFT JOIN delivery_cursors ON sink = :sink AND job_id = id "
        f"WHERE settled = ANY(:unsettled) AND {rows.last_seq} > coalesce(confirmed_seq, 0)) AS late "
        f"LEFT JOIN LATERAL (SELECT created_at FROM {rows.table} AS waiting WHERE waiting.job_id = late.id "
        "AND seq > confirmed ORDER BY seq LIMIT 1) AS oldest ON true"
    )
