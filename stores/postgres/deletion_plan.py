"""The plan of a deletion: the amount of a job's data in each store."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec
from sqlalchemy import Connection, text

from trainwire.schemas.sinks import SINKS
from trainwire.stores.postgres.jobs.job_values import SHOWN_NAME

AT_WORK: Final = ("pending", "running", "stalled")
TABLES: Final = (
    "training_logs",
    "training_metrics",
    "training_checkpoints",
    "training_attempts",
    "source_positions",
    "dead_letters",
    "delivery_cursors",
    "alert_occurrences",
    "alerts",
    "metric_series",
    "metric_blocks",
    "stop_requests",
)
"""Tables with rows of a job, except training_jobs."""
DERIVED: Final = ("alert_occurrences", "metric_series", "metric_blocks", "stop_requests")
"""Tables whose rows are derived from others, or are not data of the training: they are deleted but not counted."""


class DeletionPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The data of a job in each store; `rows` has the number of rows in each table.

    A file that several checkpoints name counts once. `mlflow_runs` are the runs that workers created; `own_runs`
    are those of its trainer, which are not deleted.
    """

    job_id: int
    name: str | None
    status: str
    attempt: int
    created_at: datetime
    rows: dict[str, int]
    copies: dict[str, int]
    """Sink -> number of lines or MLflow runs; a sink for which the job never had a row is absent."""
    mlflow_runs: list[str]
    own_runs: list[str]
    files: list[str]
    """URIs of the files in the object store, newest first, at most 1,000."""
    file_count: int
    file_bytes: int
    tokens: int
    """Number of gateway tokens that are bound to the job; they stay valid."""

    @property
    def is_at_work(self) -> bool:
        """Whether the job has not ended."""
        return self.status in AT_WORK


def plan_deletion(connection: Connection, job_id: int) -> DeletionPlan | None:
    """Return the plan to delete a job; None if there is no such job.

    The numbers of log and metric rows are computed from the job's `seq` columns, without reading the rows.
    """
    row = connection.execute(_PLAN, {"job_id": job_id}).mappings().one_or_none()
    if row is None:
        return None
    counts = {table: row[table] for table in TABLES if table not in DERIVED}
    copies = {name: row[f"copies_{name}"] for name in SINKS if row[f"copies_{name}"] is not None}
    fields = {name: row[name] for name in DeletionPlan.__struct_fields__ if name not in {"rows", "copies"}}
    return DeletionPlan(**fields, rows=counts, copies=copies)


_FILES: Final = (
    "(SELECT DISTINCT ON (uri) uri, size_bytes, seq FROM training_checkpoints WHERE job_id = :job_id "
    "AND deleted_at IS NULL AND starts_with(uri, 's3://') ORDER BY uri, seq DESC) AS files"
)
_COUNTED: Final = (
    "training_checkpoints",
    "training_attempts",
    "source_positions",
    "dead_letters",
    "delivery_cursors",
    "alerts",
)
_COUNTS: Final = ", ".join(
    f"(SELECT count(*) FROM {table} WHERE job_id = :job_id) AS {table}"  # noqa: S608 - our own names
    for table in _COUNTED
)
# Null: the job has never had a row for the sink. One with another work list may have copies all the same.
_COPIES: Final = ", ".join(
    f"CASE WHEN {sink.rows.last_seq} > 0 OR '{sink.work_list}' <> 'delivery_cursors' "
    f"THEN {sink.copy_count.format(name=sink.name)} END AS copies_{sink.name}"
    for sink in SINKS.values()
)
_PLAN: Final = text(
    f"""
    SELECT id AS job_id, {SHOWN_NAME} AS name, status, attempt, created_at,
        last_log_seq - removed_log_seq AS training_logs, last_metric_seq - removed_metric_seq AS training_metrics,
        {_COUNTS}, {_COPIES},
        ARRAY(
            SELECT mirror_run_id FROM training_attempts WHERE job_id = id AND mirror_run_id IS NOT NULL
            ORDER BY training_attempts.attempt
        ) AS mlflow_runs,
        ARRAY(
            SELECT mlflow_run_id FROM training_attempts WHERE job_id = id AND mlflow_run_id IS NOT NULL
            AND mlflow_run_id IS DISTINCT FROM mirror_run_id ORDER BY training_attempts.attempt
        ) AS own_runs,
        ARRAY(SELECT uri FROM {_FILES} ORDER BY seq DESC LIMIT 1000) AS files,
        (SELECT count(*) FROM {_FILES}) AS file_count,
        (SELECT CAST(coalesce(sum(size_bytes), 0) AS bigint) FROM {_FILES}) AS file_bytes,
        (SELECT count(*) FROM gateway_tokens WHERE job_id = id AND revoked_at IS NULL) AS tokens
    FROM training_jobs WHERE id = :job_id
    """  # noqa: S608 - our own names
)
