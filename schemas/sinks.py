"""The registry of sinks: stores that receive copies of rows in Postgres.

The code of a sink is in `trainwire.workers.sinks.<name>.plugin`; docs/add-a-sink.md explains how to add one.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

RowKind = Literal["logs", "metrics"]


class RowNames(NamedTuple):
    """Names for one kind of row: its table, its columns in training_jobs, and its nouns in texts for users."""

    table: str
    last_seq: str
    """Column of training_jobs with the last `seq` given to a row, which is also the number of rows ever written.
    """
    removed_seq: str
    """Column of training_jobs with the last `seq` that retention has removed."""
    kind: str
    item: str


ROWS: Final[dict[RowKind, RowNames]] = {
    "logs": RowNames("training_logs", "last_log_seq", "removed_log_seq", "log", "line"),
    "metrics": RowNames("training_metrics", "last_metric_seq", "removed_metric_seq", "metric", "point"),
}


class SinkEntry(NamedTuple):
    """The properties of a sink that all processes need, not only the workers that deliver to it."""

    name: str
    """Identifies the sink in cursors, dead letters, work orders and settings; also the name of its code folder."""
    title: str
    """Name of the sink in texts for users."""
    kind: RowKind
    """The kind of row that the sink receives."""
    queue: str
    """The Celery queue of the sink's work orders. Each sink has its own, so that a slow sink delays no other."""
    worker: str
    """Name of the worker that `trainwire up` starts for `queue`."""
    copies: str = "lines"
    """Plural noun for the sink's copies of rows, used in texts."""
    work_list: str = "delivery_cursors"
    """The table that lists the sink's copies of a job; a deletion keeps its rows until the copies are deleted."""
    copy_count: str = (
        "coalesce((SELECT confirmed_seq FROM delivery_cursors WHERE sink = '{name}' AND job_id = id), 0)"
    )
    """SQL expression over `training_jobs`: the number of copies in the sink."""
    own_run_id: str = "CAST(NULL AS text)"
    """SQL expression over `training_jobs`: id of the run that the trainer itself logs to this store, or null."""

    @property
    def rows(self) -> RowNames:
        """The names of the table and columns of the rows that the sink receives."""
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
