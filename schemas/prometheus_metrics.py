"""The Prometheus metrics of exporter and gateway: every name with its unit, its labels and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric; the name ends in its unit, a counter's then in `_total`."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


STORE_UP: Final = Metric(
    "trainwire_store_up",
    "gauge",
    "1: the store answered this scrape; 0: its other metrics are missing",
    ("store",),
)

SHARD_UP: Final = Metric(
    "trainwire_shard_up",
    "gauge",
    "1: the server that has the shard's streams answered; 0: the shard's other metrics are missing",
    ("shard", "server"),
)
STREAM_LAG_ENTRIES: Final = Metric(
    "trainwire_stream_lag_entries", "gauge", "Entries that are not in Postgres yet", ("kind", "shard")
)
STREAM_LAG_SECONDS: Final = Metric(
    "trainwire_stream_lag_seconds",
    "gauge",
    "Age of the oldest entry that is not in Postgres yet",
    ("kind", "shard"),
)
STREAM_HALTED: Final = Metric(
    "trainwire_stream_halted",
    "gauge",
    "1: its drain refuses to go on until somebody looks",
    ("kind", "shard"),
)
QUEUE_ORDERS: Final = Metric("trainwire_queue_orders", "gauge", "Work orders that wait for a worker", ("queue",))
BEAT_AGE_SECONDS: Final = Metric(
    "trainwire_beat_age_seconds", "gauge", "Time since beat last sent a tick; absent if it never did"
)
REDIS_USED_BYTES: Final = Metric("trainwire_redis_used_bytes", "gauge", "Memory that Redis uses")
REDIS_LIMIT_BYTES: Final = Metric("trainwire_redis_limit_bytes", "gauge", "Redis' maxmemory; 0: no limit")
REDIS_HOLD: Final = Metric("trainwire_redis_holding", "gauge", "1: trainers are told to hold back")

TRAINERS: Final = Metric(
    "trainwire_live_trainers", "gauge", "Processes of trainings that were heard of within LOST_AFTER_S"
)
UNSENT_MESSAGES: Final = Metric(
    "trainwire_trainer_unsent_messages",
    "gauge",
    "Messages of live trainers that were not in Redis yet",
)
SPOOL_BYTES: Final = Metric(
    "trainwire_trainer_spool_bytes", "gauge", "What live trainers keep on their disks until it is committed"
)
SPOOL_LARGEST_BYTES: Final = Metric(
    "trainwire_trainer_spool_largest_bytes", "gauge", "The largest spool of a live trainer"
)
TRAINER_DROPPED_ITEMS: Final = Metric(
    "trainwire_trainer_dropped_items",
    "gauge",
    "Lines, points and checkpoints that live trainers dropped",
)

INGEST_ENTRIES: Final = Metric(
    "trainwire_ingest_entries_total", "counter", "Entries taken off the streams", ("kind", "shard")
)
INGEST_ROWS: Final = Metric(
    "trainwire_ingest_rows_total", "counter", "Rows written to Postgres", ("kind", "shard")
)
INGEST_BYTES: Final = Metric(
    "trainwire_ingest_bytes_total",
    "counter",
    "Bytes of the entries as they came, compressed or not",
    ("kind", "shard"),
)
INGEST_DUPLICATES: Final = Metric(
    "trainwire_ingest_duplicate_entries_total", "counter", "Entries that had been stored before", ("kind", "shard")
)
INGEST_DISCARDED: Final = Metric(
    "trainwire_ingest_discarded_entries_total",
    "counter",
    "Entries of deleted jobs, acknowledged and not stored",
    ("kind", "shard"),
)
DRAIN_SECONDS: Final = Metric(
    "trainwire_drain_duration_seconds",
    "histogram",
    "Time of a drain's transaction, from its lease to just before its commit",
    ("kind", "shard"),
)
MISSING_MESSAGES: Final = Metric(
    "trainwire_missing_messages", "gauge", "Messages below a later one of their source that never came", ("kind",)
)
LOST_MESSAGES: Final = Metric(
    "trainwire_lost_messages", "gauge", "Messages that their trainers have declared lost for good", ("kind",)
)
DEAD_LETTERS: Final = Metric(
    "trainwire_dead_letters", "gauge", "Dead letters that nobody has replayed or discarded", ("stream", "reason")
)

SINK_LAG_ROWS: Final = Metric(
    "trainwire_sink_lag_rows", "gauge", "Rows in Postgres that the sink has not confirmed", ("sink",)
)
SINK_LAG_SECONDS: Final = Metric(
    "trainwire_sink_lag_seconds", "gauge", "Age of the oldest row that the sink has not confirmed", ("sink",)
)
SINK_DOWN_SECONDS: Final = Metric(
    "trainwire_sink_down_seconds", "gauge", "How long the sink has not answered; 0: it answers", ("sink",)
)
SINK_CONFIRMED_ROWS: Final = Metric(
    "trainwire_sink_confirmed_rows",
    "gauge",
    "Rows that the sink has confirmed; a replay takes some back",
    ("sink",),
)
DELIVERY_SECONDS: Final = Metric(
    "trainwire_delivery_duration_seconds",
    "histogram",
    "Time of a work order to deliver, failed ones included",
    ("sink",),
)

JOBS: Final = Metric("trainwire_jobs", "gauge", "Training jobs", ("status",))
TRAINING_VALUE: Final = Metric(
    "trainwire_training_value", "gauge", "The newest value of a metric of a running job", ("job_id", "metric")
)
TRAINING_LEFT_OUT: Final = Metric(
    "trainwire_training_left_out_values",
    "gauge",
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

GATEWAY_REQUESTS: Final = Metric(
    "trainwire_gateway_requests_total",
    "counter",
    "Requests answered",
    ("method", "route", "status"),
)
GATEWAY_SECONDS: Final = Metric(
    "trainwire_gateway_request_duration_seconds",
    "histogram",
    "From request to answer",
    ("route",),
)
GATEWAY_CUTS: Final = Metric(
    "trainwire_gateway_cut_connections_total",
    "counter",
    "Connections ended for a client that sends or takes too slowly",
    ("reason",),
)

GATEWAY_METRICS: Final = (GATEWAY_REQUESTS, GATEWAY_SECONDS, GATEWAY_CUTS)
"""Of each gateway, at its own /metrics."""
