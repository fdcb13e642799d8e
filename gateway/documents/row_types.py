"""Types of the JSON documents with rows of a job in responses, except single rows (schemas/events.py)."""

from __future__ import annotations

from datetime import datetime

import msgspec

from trainwire.gateway.documents.job_types import JobItem
from trainwire.schemas.events import LogLine, SavedCheckpoint
from trainwire.schemas.non_finite import Number
from trainwire.stores.rows.command_rows import StoredPoint


class NamePage(msgspec.Struct, frozen=True, kw_only=True):
    """Sorted names of a job's metrics; `next` is the `after` of the following page, null on the last one.

    If `complete` is false, older rows of a large job have not been read yet: repeat the request.
    """

    items: list[str]
    next: str | None
    complete: bool


class Scanned(msgspec.Struct, frozen=True, kw_only=True):
    """The range of lines that were searched, if not all were.

    Continue with `before=first_seq` or `after=last_seq`.
    """

    first_seq: int
    last_seq: int


class LogPage(msgspec.Struct, frozen=True, kw_only=True):
    """Lines of a job's log, oldest to newest; `total` is the `seq` of the log's last line.

    `first_seq` and `last_seq` are those of the first and the last line of the page; null without lines.
    """

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


class PointPage(msgspec.Struct, frozen=True, kw_only=True):
    """Points of a job, oldest to newest; `next` is the `before` of the page with older points, or null."""

    items: list[StoredPoint]
    next: int | None


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
    """A checkpoint and the state of its file; `is_best` and `is_last` mark the job's best and last checkpoint.

    `was_best` marks each checkpoint that its trainer reported as the best so far.
    """

    is_last: bool
    was_best: bool = False
    state: str
    upload_error: str | None = None
    verified_at: datetime | None = None
    verify_error: str | None = None
    deleted_at: datetime | None = None
    overwritten_by: int | None = None


class CheckpointPage(msgspec.Struct, frozen=True, kw_only=True):
    """Up to 1000 checkpoints of a job, the newest (before the `seq` in `before`), in stored order."""

    items: list[CheckpointItem]


class Loan(msgspec.Struct, frozen=True, kw_only=True):
    """A signed URL from which a checkpoint file can be downloaded until `expires_at`."""

    url: str
    expires_at: datetime
