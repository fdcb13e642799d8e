"""The documents that the gateway answers with, besides the rows of schemas/events.py."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

import msgspec

from trainwire.schemas.events import LogLine, SavedCheckpoint
from trainwire.schemas.messages import Status
from trainwire.schemas.non_finite import Number
from trainwire.stores.postgres.completeness import State
from trainwire.stores.postgres.deletion import DeletionPart, PartName
from trainwire.stores.postgres.deletion_plan import DeletionPlan

Numbers = dict[str, Number]


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """How many rows of each kind a job has had."""

    logs: int
    metrics: int
    checkpoints: int


class Sparkline(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of a job in at most 40 values, from its first to its newest; NaN and infinities are left out."""

    name: str
    values: list[float]


class JobItem(msgspec.Struct, frozen=True, kw_only=True):
    """A job as lists show it."""

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


class AttemptItem(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of a job."""

    attempt: int
    status: Status
    started_at: datetime | None
    completed_at: datetime | None
    exit_code: int | None
    error_message: str | None


class JobDetail(JobItem, frozen=True, kw_only=True):
    """A job as its own page shows it; not `metric_names_complete`: `/jobs/{id}/metrics/names` has more.

    Not `results_complete`: `final_metrics` and `best_metrics` have 1,000 names each at most, and there are more.
    """

    params: dict[str, Any] | None
    tags: dict[str, Any] | None
    mlflow_url: str | None
    attempts: list[AttemptItem]
    metric_names: list[str]
    metric_names_complete: bool
    results_complete: bool
    traceback: str | None


class NamePage(msgspec.Struct, frozen=True, kw_only=True):
    """Names of metrics in their order; `next` is the `after` of the following page, null at the end.

    Not `complete`: older rows of a job with millions are not read yet; ask again.
    """

    items: list[str]
    next: str | None
    complete: bool


class JobPage(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs, the newest first; `next` is the `cursor` of the page after this, null at the end."""

    items: list[JobItem]
    next: str | None


class Scanned(msgspec.Struct, frozen=True, kw_only=True):
    """What was looked at, where that was not all: go on with `before=first_seq` or `after=last_seq`."""

    first_seq: int
    last_seq: int


class LogPage(msgspec.Struct, frozen=True, kw_only=True):
    """Lines, oldest to newest; `total` is the last `seq` of the job."""

    items: list[LogLine]
    first_seq: int | None
    last_seq: int | None
    total: int
    scanned: Scanned | None = None


SeriesPoint = tuple[int | None, int, Number, int | None, int]
"""x (step, epoch or time, as asked for), time in nanoseconds, value, epoch, seq."""


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of one attempt and rank, in order of `seq`."""

    name: str
    attempt: int
    rank: int | None
    points: list[SeriesPoint]


class MetricPage(msgspec.Struct, frozen=True, kw_only=True):
    """Series up to the row `last_seq`; downsampled: of each piece the lowest and the highest point are there."""

    series: list[Series]
    last_seq: int
    downsampled: bool


class JobSeries(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of one of several jobs, of its newest attempt."""

    job_id: int
    name: str
    attempt: int
    points: list[SeriesPoint]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Several jobs side by side."""

    jobs: list[JobItem]
    series: list[JobSeries]


class CheckpointItem(SavedCheckpoint, frozen=True, kw_only=True, omit_defaults=True):
    """One checkpoint and what has become of its file; `is_best` and `is_last` are the job's now."""

    is_last: bool
    state: str
    upload_error: str | None = None
    verified_at: datetime | None = None
    verify_error: str | None = None
    deleted_at: datetime | None = None
    overwritten_by: int | None = None


class CheckpointPage(msgspec.Struct, frozen=True, kw_only=True):
    """Checkpoints in the order in which they were stored: the newest 1000."""

    items: list[CheckpointItem]


class Loan(msgspec.Struct, frozen=True, kw_only=True):
    """An address from which a checkpoint file can be downloaded for a while."""

    url: str
    expires_at: datetime


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """Messages of one source and kind that never arrived: first and last number of each range."""

    source: str
    kind: str
    ranges: list[tuple[int, int]]


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """Messages of one source and kind that it cannot send again: first, last and the reason of each range."""

    source: str
    kind: str
    ranges: list[tuple[int, int, str]]


class RankGap(msgspec.Struct, frozen=True, kw_only=True):
    """Ranks of one attempt that have not reported: first and last rank of each range."""

    attempt: int
    world_size: int
    ranges: list[tuple[int, int]]


class CompletenessReport(msgspec.Struct, frozen=True, kw_only=True):
    """produced = stored + dead_lettered + missing + all of lost + dropped, in messages; `line` is one sentence.

    `state` is one word (docs/concepts.md), which takes the job's `status` into account. `lost` counts by reason.
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


class DeliveryItem(msgspec.Struct, frozen=True, kw_only=True):
    """How far a sink has confirmed a job's rows; `words` say it."""

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
    """The sinks that a job's rows go to."""

    items: list[DeliveryItem]


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """What was said is in the queue; workers store it within a moment."""

    job_id: int
    status: Literal["accepted"] = "accepted"


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """What was said is committed in Postgres."""

    job_id: int
    status: Literal["stored"] = "stored"


class DeletionReport(msgspec.Struct, frozen=True, kw_only=True):
    """A job's deletion, store by store.

    `state` is planned (a dry run: only `plan` is there), deleting, deleted, or left: something cannot be deleted.
    """

    job_id: int
    name: str | None
    state: Literal["planned", "deleting", "deleted", "left"]
    plan: DeletionPlan | None = None
    deleted_at: datetime | None = None
    deleted_by: str | None = None
    reason: str | None = None
    finished_at: datetime | None = None
    discarded_messages: int = 0
    parts: Mapping[PartName, DeletionPart] = {}


class SessionState(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a token is asked for, and who asks; the role is null for who has no valid token.

    `flower_url` is where operators look at the workers, for who may look.
    """

    auth: Literal["off", "on"]
    role: Literal["viewer", "trainer", "admin"] | None
    job_id: int | None
    flower_url: str | None
