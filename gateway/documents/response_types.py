"""Types of the JSON documents in responses, except rows (schemas/events.py); OpenAPI shows their docstrings."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, TypeVar

import msgspec

from trainwire.schemas.events import LogLine, SavedCheckpoint
from trainwire.schemas.messages import Status
from trainwire.schemas.non_finite import Number
from trainwire.stores.postgres.alerts import AlertEntry
from trainwire.stores.postgres.completeness import State
from trainwire.stores.postgres.deletion import DeletionPart, PartName
from trainwire.stores.postgres.deletion_plan import DeletionPlan
from trainwire.stores.postgres.job_pages import JobGroup

Numbers = dict[str, Number]
D = TypeVar("D", bound=msgspec.Struct)


def document_from(document: type[D], source: object, **fields: Any) -> D:
    """Build a document from `fields`; other fields are copied from the attributes of `source` by name."""
    same = {name: getattr(source, name) for name in document.__struct_fields__ if name not in fields}
    return document(**same, **fields)


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
    """The request of a user to stop an attempt (docs/stop.md)."""

    requested_at: datetime
    requested_by: str
    reason: str | None


class StopReceipt(Stop, frozen=True, kw_only=True):
    """The stored request to stop an attempt of a job; of several requests the first."""

    job_id: int
    attempt: int


class JobItem(msgspec.Struct, frozen=True, kw_only=True):
    """A job in a list; `columns` has the values of the columns that the request names.

    Its attempt continues from step `resume_step`. A fork continues from step `fork_step` of the job `parent_id`.
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


class AttemptItem(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of a job."""

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
    ranks, `last_by_rank` has the newest value of each metric and rank among the job's last rows.
    `forks` are the first 100 jobs that are forks of this one.
    """

    params: dict[str, Any] | None
    tags: dict[str, Any] | None
    mlflow_url: str | None
    attempts: list[AttemptItem]
    metric_names: list[str]
    metric_names_complete: bool
    results_complete: bool
    last_by_rank: dict[str, dict[str, Number]]
    forks: list[int]
    traceback: str | None
    warning: str | None


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """The provenance of an attempt: command, code and machine, item by item (docs/provenance.md)."""

    attempt: int
    items: dict[str, Any]


class NamePage(msgspec.Struct, frozen=True, kw_only=True):
    """Sorted names of a job's metrics; `next` is the `after` of the following page, null on the last one.

    If `complete` is false, older rows of a large job have not been read yet: repeat the request.
    """

    items: list[str]
    next: str | None
    complete: bool


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


class Scanned(msgspec.Struct, frozen=True, kw_only=True):
    """The range of lines that were searched, if not all were.

    Continue with `before=first_seq` or `after=last_seq`.
    """

    first_seq: int
    last_seq: int


class LogPage(msgspec.Struct, frozen=True, kw_only=True):
    """Lines of a job's log, oldest to newest; `total` is the `seq` of the log's last line."""

    items: list[LogLine]
    first_seq: int | None
    last_seq: int | None
    total: int
    scanned: Scanned | None = None


SeriesPoint = tuple[int | None, int, Number, int | None, int]
"""Tuple of x (step, epoch or time, as requested), time in nanoseconds, value, epoch and `seq`."""


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """Points of one metric, attempt and rank, in order of `seq`."""

    name: str
    attempt: int
    rank: int | None
    points: list[SeriesPoint]


class MetricPage(msgspec.Struct, frozen=True, kw_only=True):
    """Series of metrics up to the row `last_seq`; downsampled ones keep the extremes of each interval."""

    series: list[Series]
    last_seq: int
    downsampled: bool


class JobSeries(msgspec.Struct, frozen=True, kw_only=True):
    """Points of one metric and rank in the newest attempt of a job."""

    job_id: int
    name: str
    attempt: int
    rank: int | None
    points: list[SeriesPoint]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Several jobs and series of their metrics.

    Without `names` in the request, a page has up to 50 of the metrics that all jobs have; `next` is the `after` of
    the following page, null on the last one. If `complete` is false, more shared metrics may be found in older
    rows, which later requests read.
    """

    jobs: list[JobItem]
    series: list[JobSeries]
    next: str | None
    complete: bool


class CheckpointItem(SavedCheckpoint, frozen=True, kw_only=True, omit_defaults=True):
    """A checkpoint and the state of its file; `is_best` and `is_last` mark the job's best and last checkpoint."""

    is_last: bool
    state: str
    upload_error: str | None = None
    verified_at: datetime | None = None
    verify_error: str | None = None
    deleted_at: datetime | None = None
    overwritten_by: int | None = None


class CheckpointPage(msgspec.Struct, frozen=True, kw_only=True):
    """The newest 1000 checkpoints of a job, in the order in which they were stored."""

    items: list[CheckpointItem]


class Loan(msgspec.Struct, frozen=True, kw_only=True):
    """A signed URL from which a checkpoint file can be downloaded until `expires_at`."""

    url: str
    expires_at: datetime


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """Missing messages of one source and kind; `ranges` are pairs of first and last number."""

    source: str
    kind: str
    ranges: list[tuple[int, int]]


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """Lost messages of one source and kind; `ranges` are triples of first number, last number and reason."""

    source: str
    kind: str
    ranges: list[tuple[int, int, str]]


class RankGap(msgspec.Struct, frozen=True, kw_only=True):
    """Ranks of one attempt that have sent no messages; `ranges` are pairs of first and last rank."""

    attempt: int
    world_size: int
    ranges: list[tuple[int, int]]


class RankShare(msgspec.Struct, frozen=True, kw_only=True):
    """A rank of an attempt that several trainers (`sources`) had at the same time."""

    attempt: int
    rank: int
    sources: list[str]


class CompletenessReport(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of messages: produced = stored + dead_lettered + missing + lost + dropped; `line` is a summary.

    `state` is explained in docs/concepts.md, and depends on the job's `status` too. `lost` has a count for each
    reason.
    """

    state: State
    status: Status
    line: str
    produced: int
    stored: int
    dead_lettered: int
    missing: int
    lost: dict[str, int]
    dropped: int
    gaps: list[Gap]
    losses: list[Loss]
    open_sources: list[str]
    silent_sources: list[str]
    absent_ranks: list[RankGap]
    shared_ranks: list[RankShare]


class DeliveryItem(msgspec.Struct, frozen=True, kw_only=True):
    """The delivery of a job's rows to one sink; `words` describes it as text, such as `2 lines behind`."""

    sink: str
    title: str
    confirmed_seq: int
    behind_rows: int
    behind_s: float | None
    dead_lettered: int
    last_error: str | None
    next_probe_at: datetime | None
    is_down: bool
    words: str


class Deliveries(msgspec.Struct, frozen=True, kw_only=True):
    """The deliveries of a job's rows, one for each sink."""

    items: list[DeliveryItem]


class AlertPage(msgspec.Struct, frozen=True, kw_only=True):
    """Alerts, the newest first; `next` is the `before` of the following page, null on the last one."""

    items: list[AlertEntry]
    next: int | None


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """The messages are in Redis; workers will store them in Postgres."""

    job_id: int
    status: Literal["accepted"] = "accepted"


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """The messages are committed in Postgres."""

    job_id: int
    status: Literal["stored"] = "stored"


class DeletionReport(msgspec.Struct, frozen=True, kw_only=True):
    """The deletion of a job, with its progress in each store.

    `state` is `planned` (a dry run, with `plan` only), `deleting`, `deleted`, or `left` if something could not be
    deleted.
    """

    job_id: int
    name: str | None
    state: Literal["planned", "deleting", "deleted", "left"]
    plan: DeletionPlan | None = None
    attempt: int | None = None
    job_created_at: datetime | None = None
    deleted_at: datetime | None = None
    deleted_by: str | None = None
    reason: str | None = None
    attempts: int = 0
    next_attempt_at: datetime | None = None
    finished_at: datetime | None = None
    discarded_messages: int = 0
    discarded_at: datetime | None = None
    parts: Mapping[PartName, DeletionPart] = {}


class SessionState(msgspec.Struct, frozen=True, kw_only=True):
    """Whether tokens are required, and the role and job of the request's token; null without a valid one.

    `flower_url` is Flower's address, for roles that may read.
    """

    auth: Literal["off", "on"]
    role: Literal["viewer", "trainer", "admin"] | None
    job_id: int | None
    flower_url: str | None
