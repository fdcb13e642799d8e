"""The registry of sinks: every store that receives a copy of what Postgres has. Nowhere else are they listed.

The code of a sink is `trainwire.workers.sinks.<name>.plugin`; docs/add-a-sink.md tells how to add one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

RowKind = Literal["logs", "metrics"]


@dataclass(frozen=True, slots=True)
class RowNames:
    """The table of one kind of rows, its columns in `training_jobs`, and two nouns for messages."""

    table: str
    last_seq: str
    removed_seq: str
    kind: str
    item: str


ROWS: Final[dict[RowKind, RowNames]] = {
    "logs": RowNames("training_logs", "last_log_seq", "removed_log_seq", "log", "line"),
    "metrics": RowNames("training_metrics", "last_metric_seq", "removed_metric_seq", "metric", "point"),
}


@dataclass(frozen=True, slots=True)
class SinkEntry:
    """The facts about a sink that every process needs, also those that never deliver to it."""

    name: str
    """In cursors, dead letters, work orders and settings, and as the folder of its code."""
    title: str
    """For people."""
    kind: RowKind
    """The rows that it receives."""
    queue: str
    """The Celery queue of its work orders; one of its own, so that a slow sink delays no other."""
    worker: str
    """The name of the worker that `trainwire up` starts for the queue."""
    copies: str = "lines"
    """The plural noun for what the sink stores."""
    work_list: str = "delivery_cursors"
    """The table whose rows a deletion needs to find the copies of a job."""
    copy_count: str = (
        "coalesce((SELECT confirmed_seq FROM delivery_cursors WHERE sink = '{name}' AND job_id = id), 0)"
    )
    """SQL over `training_jobs`: the number of its copies."""
    own_run_id: str = "CAST(NULL AS text)"
    """SQL over `training_jobs`: the id under which the trainer itself writes to this store, or null."""

    @property
    def rows(self) -> RowNames:
        """The table and columns of the rows that it receives."""
        return ROWS[self.kind]


SINKS: Final = {
    entry.name: entry
    for entry in (
        SinkEntry("loki", "Loki", "logs", "deliver", "deliverer"),
        SinkEntry(
            *("mlflow", "MLflow", "metrics", "deliver-mlflow", "mlflow"),
            copies="runs",
            work_list="training_attempts",
            copy_count="(SELECT count(*) FROM training_attempts WHERE job_id = id AND mirror_run_id IS NOT NULL)",
            own_run_id="(SELECT mlflow_run_id FROM training_attempts AS newest "
            "WHERE newest.job_id = training_jobs.id AND newest.attempt = training_jobs.attempt)",
        ),
        SinkEntry("jsonl", "JSON files", "logs", "deliver-jsonl", "jsonl"),
    )
}
