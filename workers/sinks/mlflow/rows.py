"""Metric rows and attempts as a sink is given them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from trainwire.workers.sinks.base import Delivered


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One row of training_metrics, its time in milliseconds since 1970, non-finite numbers by their names."""

    seq: int
    attempt: int
    rank: int | None
    source: str
    ts_ms: int
    step: int
    values: Mapping[str, float | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptState:
    """One attempt of a job, and what a sink has of it.

    `params`, `tags` and `provenance` are there only while `changes` is ahead of `mirrored_changes`. `is_settled`:
    no more metrics are to be expected of it.
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
        """Tell whether the sink does not have all that is known of the attempt itself."""
        return self.changes > self.mirrored_changes


@dataclass(frozen=True, slots=True)
class MetricBatch:
    """What comes next of one job: rows after `confirmed_seq`, of which `last_seq` is the last there is."""

    confirmed_seq: int
    last_seq: int
    rows: Sequence[MetricRow]
    attempts: Sequence[AttemptState]

    @property
    def is_followed(self) -> bool:
        """Tell that nothing is read ahead: MLflow is far slower than Postgres."""
        return False


@dataclass(frozen=True, slots=True)
class MirroredAttempt:
    """What a sink has of an attempt now: its run, the changes up to which it is told, what was adapted."""

    before: AttemptState
    run_id: str | None
    changes: int
    notes: Mapping[str, str]


@dataclass(slots=True)
class DeliveredMetrics(Delivered):
    """What became of a batch of metrics and of the attempts that they belong to."""

    attempts: list[MirroredAttempt] = field(default_factory=list)
