"""The Prometheus metrics of the exporter and the gateway: name, type, help text and labels of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """One Prometheus metric. Its name ends in the unit, if it has one; the name of a counter ends in `_total`."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


def _gauge(name: str, help_text: str, *labels: str) -> Metric:
    return Metric(name, "gauge", help_text, labels)


def _counter(name: str, help_text: str, *labels: str) -> Metric:
    return Metric(name, "counter", help_text, labels)


def _histogram(name: str, help_text: str, *labels: str) -> Metric:
    return Metric(name, "histogram", help_text, labels)


STORE_UP: Final = _gauge(
    "trainwire_store_up", "1: the store answered this scrape; 0: its other metrics are missing", "store"
)

SHARD_UP: Final = _gauge(
    "trainwire_shard_up",
    "1: the server that has the shard's streams answered; 0: the shard's other metrics are missing",
    "shard",
    "server",
)
STREAM_LAG_ENTRIES: Final = _gauge(
    "trainwire_stream_lag_entries", "Entries that are not in Postgres yet", "kind", "shard"
)
STREAM_LAG_SECONDS: Final = _gauge(
    "trainwire_stream_lag_seconds", "Age of the oldest entry that is not in Postgres yet", "kind", "shard"
)
STREAM_HALTED: Final = _gauge(
    "trainwire_stream_halted", "1: its drain has stopped until an operator acts", "kind", "shard"
)
QUEUE_ORDERS: Final = _gauge("trainwire_queue_orders", "Work orders that wait for a worker", "queue")
BEAT_AGE_SECONDS: Final = _gauge(
    "trainwire_beat_age_seconds", "Time since beat last sent a tick; absent if it never did"
)
REDIS_USED_BYTES: Final = _gauge("trainwire_redis_used_bytes", "Memory that Redis uses")
REDIS_LIMIT_BYTES: Final = _gauge("trainwire_redis_limit_bytes", "Redis' maxmemory; 0: no limit")
REDIS_HOLD: Final = _gauge("trainwire_redis_holding", "1: trainers keep messages in their spools")

TRAINERS: Final = _gauge("trainwire_live_trainers", "Processes of trainings with a heartbeat within LOST_AFTER_S")
UNSENT_MESSAGES: Final = _gauge(
    "trainwire_trainer_unsent_messages", "Messages of live trainers that were not in Redis yet"
)
SPOOL_BYTES: Final = _gauge("trainwire_trainer_spool_bytes", "Total size of the spools of live trainers")
SPOOL_LARGEST_BYTES: Final = _gauge("trainwire_trainer_spool_largest_bytes", "The largest spool of a live trainer")
TRAINER_DROPPED_ITEMS: Final = _gauge(
    "trainwire_trainer_dropped_items", "Lines, points and checkpoints that live trainers dropped"
)

INGEST_ENTRIES: Final = _counter(
    "trainwire_ingest_entries_total", "Entries taken off the streams", "kind", "shard"
)
INGEST_ROWS: Final = _counter("trainwire_ingest_rows_total", "Rows written to Postgres", "kind", "shard")
INGEST_BYTES: Final = _counter(
    "trainwire_ingest_bytes_total", "Bytes of the entries as received, compressed or not", "kind", "shard"
)
INGEST_DUPLICATES: Final = _counter(
    "trainwire_ingest_duplicate_entries_total", "Entries that had been stored before", "kind", "shard"
)
INGEST_DISCARDED: Final = _counter(
    "trainwire_ingest_discarded_entries_total",
    "Entries of deleted jobs, acknowledged and not stored",
    "kind",
    "shard",
)
DRAIN_SECONDS: Final = _histogram(
    "trainwire_drain_duration_seconds",
    "Time of a drain's transaction, from its lease to just before its commit",
    "kind",
    "shard",
)
MISSING_MESSAGES: Final = _gauge(
    "trainwire_missing_messages", "Messages that have not arrived although a later one of their source has", "kind"
)
LOST_MESSAGES: Final = _gauge("trainwire_lost_messages", "Messages that their trainers have declared lost", "kind")
DEAD_LETTERS: Final = _gauge(
    "trainwire_dead_letters", "Dead letters that were not replayed or discarded", "stream", "reason"
)

SINK_LAG_ROWS: Final = _gauge(
    "trainwire_sink_lag_rows", "Rows in Postgres that the sink has not confirmed", "sink"
)
SINK_LAG_SECONDS: Final = _gauge(
    "trainwire_sink_lag_seconds", "Age of the oldest row that the sink has not confirmed", "sink"
)
SINK_DOWN_SECONDS: Final = _gauge(
    "trainwire_sink_down_seconds", "How long the sink has not answered; 0: it answers", "sink"
)
SINK_CONFIRMED_ROWS: Final = _gauge(
    "trainwire_sink_confirmed_rows", "Rows that the sink has confirmed; a replay takes some back", "sink"
)
DELIVERY_SECONDS: Final = _histogram(
    "trainwire_delivery_duration_seconds", "Time of a work order to deliver, failed ones included", "sink"
)

JOBS: Final = _gauge("trainwire_jobs", "Training jobs", "status")
TRAINING_VALUE: Final = _gauge(
    "trainwire_training_value", "The newest value of a metric of a running job", "job_id", "metric"
)
TRAINING_LEFT_OUT: Final = _gauge(
    "trainwire_training_left_out_values",
    "Values of running jobs beyond METRICS_MAX_SERIES or METRICS_MAX_JOBS, as far as they were seen",
)

WORKERS_METRICS: Final = (
    *(STORE_UP, SHARD_UP),
    *(STREAM_LAG_ENTRIES, STREAM_LAG_SECONDS, STREAM_HALTED, QUEUE_ORDERS, BEAT_AGE_SECONDS),
    *(REDIS_USED_BYTES, REDIS_LIMIT_BYTES, REDIS_HOLD),
    *(TRAINERS, UNSENT_MESSAGES, SPOOL_BYTES, SPOOL_LARGEST_BYTES, TRAINER_DROPPED_ITEMS),
    *(INGEST_ENTRIES, INGEST_ROWS, INGEST_BYTES, INGEST_DUPLICATES, INGEST_DISCARDED, DRAIN_SECONDS),
    *(MISSING_MESSAGES, LOST_MESSAGES, DEAD_LETTERS),
    *(SINK_LAG_ROWS, SINK_LAG_SECONDS, SINK_DOWN_SECONDS, SINK_CONFIRMED_ROWS, DELIVERY_SECONDS),
    *(JOBS, TRAINING_VALUE, TRAINING_LEFT_OUT),
)

GATEWAY_REQUESTS: Final = _counter(
    "trainwire_gateway_requests_total", "Requests answered", "method", "route", "status"
)
GATEWAY_SECONDS: Final = _histogram(
    "trainwire_gateway_request_duration_seconds", "From request to answer", "route"
)
GATEWAY_CUTS: Final = _counter(
    "trainwire_gateway_cut_connections_total",
    "Connections ended for a client that sends or takes too slowly",
    "reason",
)

GATEWAY_METRICS: Final = (GATEWAY_REQUESTS, GATEWAY_SECONDS, GATEWAY_CUTS)
"""Metrics that each gateway exports at its own /metrics."""
