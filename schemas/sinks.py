"""The registry of sinks: the stores that receive copies of rows in Postgres.

The code of a sink is `trainwire.workers.sinks.<name>.plugin`; docs/add-a-sink.md explains how to add one.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

RowKind = Literal["logs", "metrics"]


class RowNames(NamedTuple):
    """The table of one kind of rows, its columns in `training_jobs`, and its nouns in texts."""

    table: str
    last_seq: str
    """Column of training_jobs with the last `seq` given to a row, which is the number of rows ever written."""
    removed_seq: str
    """Column of training_jobs with the last `seq` that retention has removed."""
    kind: str
    item: str


ROWS: Final[dict[RowKind, RowNames]] = {
    "logs": RowNames("training_logs", "last_log_seq", "removed_log_seq", "log", "line"),
    "metrics": RowNames("training_metrics", "last_metric_seq", "removed_metric_seq", "metric", "point"),
}


class SinkEntry(NamedTuple):
    """The properties of a sink that all processes need, including those that never deliver to it."""

    name: str
    """Identifies it in cursors, dead letters, work orders and settings; also the folder of its code."""
    title: str
    """Name in texts for people."""
    kind: RowKind
    """Kind of rows that it receives."""
    queue: str
    """The Celery queue of its work orders; a separate one, so that a slow sink delays no other."""
    worker: str
    """Name of the worker that `trainwire up` starts for the queue."""
    copies: str = "lines"
    """Plural noun for its copies, in texts."""
    work_list: str = "delivery_cursors"
    """The table whose rows a deletion needs to find the copies of a job."""
    copy_count: str = (
        "coalesce((SELECT confirmed_seq FROM delivery_cursors WHERE sink = '{name}' AND job_id = id), 0)"
    )
    """SQL over `training_jobs`: the number of its copies."""
    own_run_id: str = "CAST(NULL AS text)"
    """SQL over `training_jobs`: id of the run that the trainer itself writes to this store, or null."""

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
