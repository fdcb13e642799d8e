"""Defines the metric rows and attempts that are delivered to MLflow, and the results of a delivery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from trainwire.workers.sinks.base import Delivered


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One row of `training_metrics`.

    `ts_ms` is milliseconds since 1970; non-finite values are strings such as `NaN`.
    """

    seq: int
    attempt: int
    rank: int | None
    source: str
    ts_ms: int
    step: int
    values: Mapping[str, float | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptState:
    """One attempt of a job, and the state of the run that workers create for it in MLflow (its mirror).

    `params`, `tags` and `provenance` are read only if `has_changed`. `is_settled` is True if the attempt has
    changed and no more metrics of it are expected. `mlflow_run_id` is the id of a run that the trainer itself
    created, or None.
    """

    attempt: int
    status: str
    job_created_at: datetime
    name: str | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    params: Mapping[str, Any] | None = None
    tags: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] | None = None
    mlflow_run_id: str | None = None
    mirror_run_id: str | None = None
    changes: int = 0
    mirrored_changes: int = 0
    mirror_notes: Mapping[str, str] | None = None
    is_settled: bool = False

    @property
    def has_changed(self) -> bool:
        """Whether the attempt has changed since it was last sent to MLflow."""
        return self.changes > self.mirrored_changes


@dataclass(frozen=True, slots=True)
class MetricBatch:
    """The attempts of a job, and its next metric rows after the row `confirmed_seq`.

    `last_seq` is the number of the last metric row that the job has ever had; it may be after this batch.
    """

    confirmed_seq: int
    last_seq: int
    rows: Sequence[MetricRow]
    attempts: Sequence[AttemptState]

    @property
    def is_followed(self) -> bool:
        """Always False: reading ahead has no benefit, because MLflow is far slower than Postgres."""
        return False


@dataclass(frozen=True, slots=True)
class MirroredAttempt:
    """The state, after a delivery, of the MLflow run that workers create for the attempt `before`.

    Its fields are the id of the run or None, the number of changes that MLflow has received, and the notes about
    adapted names and values.
    """

    before: AttemptState
    run_id: str | None
    changes: int
    notes: Mapping[str, str]


@dataclass(slots=True)
class DeliveredMetrics(Delivered):
    """The result of delivering metric rows of a job and its changed attempts to MLflow."""

    attempts: list[MirroredAttempt] = field(default_factory=list)
