"""Types of the JSON documents about jobs in responses; OpenAPI shows their docstrings."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from trainwire.schemas.non_finite import Number
from trainwire.schemas.wire.messages import Status
from trainwire.stores.postgres.jobs.job_pages import JobGroup

Numbers = dict[str, Number]


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """Number of rows of each kind that were ever stored for a job."""

    logs: int
    metrics: int
    checkpoints: int


class Sparkline(msgspec.Struct, frozen=True, kw_only=True):
    """At most 40 values of one metric, from its first to its newest; NaN and infinities are left out."""

    name: str
    values: list[float]


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """A user's request to stop an attempt (docs/stop.md)."""

    requested_at: datetime
    requested_by: str
    reason: str | None


class StopReceipt(Stop, frozen=True, kw_only=True):
    """The stored request to stop an attempt of a job; of several requests the first."""

    job_id: int
    attempt: int


class JobItem(msgspec.Struct, frozen=True, kw_only=True):
    """A job in a list; `columns` has the values of the columns that the request names.

    `params` and `tags` are absent unless the request has `details=true`. Its attempt continues from step
    `resume_step`. A fork continues from step `fork_step` of the job `parent_id`.
    """

    id: int
    name: str | None
    status: Status
    status_reason: str | None
    attempt: int
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    last_seen_at: datetime | None
    quiet_since: datetime | None
    current_epoch: int | None
    total_epochs: int | None
    progress_percent: Number | None
    final_accuracy: Number | None
    final_metrics: Numbers | None
    best_metrics: Numbers | None
    best_epoch: int | None
    best_checkpoint_path: str | None
    last_checkpoint_path: str | None
    mlflow_run_id: str | None
    exit_code: int | None
    error_message: str | None
    rows: Rows
    last_metrics: Numbers
    sparkline: Sparkline | None
    note: str | None
    archived_at: datetime | None
    stop: Stop | None
    resume_step: int | None
    parent_id: int | None
    fork_step: int | None
    columns: dict[str, Any] = {}
    params: dict[str, Any] | UnsetType | None = UNSET
    tags: dict[str, Any] | UnsetType | None = UNSET


class AttemptItem(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of a job; `resume_step` is the step from which it continues, null if it starts anew."""

    attempt: int
    name: str | None
    status: Status
    started_at: datetime | None
    completed_at: datetime | None
    exit_code: int | None
    error_message: str | None
    stop: Stop | None
    resume_step: int | None


class JobDetail(JobItem, frozen=True, kw_only=True):
    """One job with its parameters, tags, attempts and names of metrics.

    If `metric_names_complete` is false, `/jobs/{id}/metrics/names` has more names. If `results_complete` is false,
    `final_metrics` or `best_metrics` has more names than the 1,000 in this document. For a training on several
    ranks, `last_by_rank` has the newest value of each metric and rank among the job's last rows. `metric_ranks` is
    the number of ranks of the newest attempt that have sent metrics.
    `forks` are the first 100 jobs that are forks of this one. `last_checkpoint` is the newest usable checkpoint.
    `removed_rows` has the last `seq` of each kind that retention has removed.
    """

    params: dict[str, Any] | None
    tags: dict[str, Any] | None
    mlflow_url: str | None
    attempts: list[AttemptItem]
    metric_names: list[str]
    metric_names_complete: bool
    results_complete: bool
    last_by_rank: dict[str, dict[str, Number]]
    metric_ranks: int
    forks: list[int]
    last_checkpoint: str | None
    removed_rows: dict[str, int]
    traceback: str | None
    warning: str | None


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """The provenance of an attempt: command, code and machine, item by item (docs/provenance.md)."""

    attempt: int
    items: dict[str, Any]


class JobPage(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs in the requested order; `next` is the `cursor` of the following page, null on the last one.

    `total` is the number of all matching jobs; it is null except on the first page.
    """

    items: list[JobItem]
    next: str | None
    total: int | None = None


class JobReference(msgspec.Struct, frozen=True, kw_only=True):
    """A job that matches a reference: a number, a name, or the beginning of either."""

    id: int
    name: str | None
    status: Status
    started_at: datetime | None


class JobReferences(msgspec.Struct, frozen=True, kw_only=True):
    """The newest jobs that match a reference; `total` counts all matching jobs, deleted ones included.

    `also_named` is the number of another job whose name is equal to the reference, if that is a number or `last`.
    """

    items: list[JobReference]
    total: int
    also_named: int | None


class JobGroups(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of jobs by the value of a field; if `complete` is false, the field has more values than these."""

    items: list[JobGroup]
    complete: bool


class FieldNames(msgspec.Struct, frozen=True, kw_only=True):
    """Names of the fields that filters, sort orders and columns can use.

    `jobs` has the fields of every job; `params`, `tags` and `metrics` have the names that occur in the newest
    jobs.
    """

    jobs: list[str]
    params: list[str]
    tags: list[str]
    metrics: list[str]
