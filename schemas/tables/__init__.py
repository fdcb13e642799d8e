"""The Postgres tables. They have no foreign keys: checking one per row would cost more than the row's COPY."""

from trainwire.schemas.tables.delivery_tables import (
    alert_occurrences,
    alerts,
    delivery_cursors,
    delivery_times,
    sink_states,
)
from trainwire.schemas.tables.job_tables import deleted_jobs, stop_requests, training_attempts, training_jobs
from trainwire.schemas.tables.row_tables import (
    INDEXED_CHARS,
    LIFTED,
    LIFTED_SQL,
    ROLLUPS_CURSOR,
    metric_blocks,
    metric_series,
    training_checkpoints,
    training_logs,
    training_metrics,
)
from trainwire.schemas.tables.shared_columns import metadata
from trainwire.schemas.tables.stream_tables import dead_letters, ingest_cursors, source_positions
from trainwire.schemas.tables.token_tables import gateway_tokens

__all__ = [
    "INDEXED_CHARS",
    "LIFTED",
    "LIFTED_SQL",
    "ROLLUPS_CURSOR",
    "alert_occurrences",
    "alerts",
    "dead_letters",
    "deleted_jobs",
    "delivery_cursors",
    "delivery_times",
    "gateway_tokens",
    "ingest_cursors",
    "metadata",
    "metric_blocks",
    "metric_series",
    "sink_states",
    "source_positions",
    "stop_requests",
    "training_attempts",
    "training_checkpoints",
    "training_jobs",
    "training_logs",
    "training_metrics",
]
