"""The records that the client returns for jobs, checkpoints, requests to stop, and completeness."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypeVar

import msgspec

from trainwire.schemas.non_finite import floats_in

R = TypeVar("R", bound=msgspec.Struct)


class JobInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a job. `last_metrics` has the newest value of each metric in the newest rows.

    `final_metrics` and `best_metrics` have at most 1,000 names, and fewer if the job was read as part of a list.
    `columns` has the values of the fields that the call of `Client.jobs` named. In a list, `traceback` is absent,
    and over HTTP `params` and `tags` are too: read the job with `client.job(number)` to get them.
    """

    id: int
    name: str | None = None
    status: str
    status_reason: str | None = None
    attempt: int
    created_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    last_seen_at: datetime | None = None
    quiet_since: datetime | None = None
    current_epoch: int | None = None
    total_epochs: int | None = None
    progress_percent: float | None = None
    final_metrics: dict[str, Any] | None = None
    best_metrics: dict[str, Any] | None = None
    last_metrics: dict[str, Any] = {}
    best_epoch: int | None = None
    best_checkpoint_path: str | None = None
    last_checkpoint_path: str | None = None
    exit_code: int | None = None
    error_message: str | None = None
    traceback: str | None = None
    params: dict[str, Any] | None = None
    tags: dict[str, Any] | None = None
    note: str | None = None
    archived_at: datetime | None = None
    stop: dict[str, Any] | None = None
    """The request to stop the job's attempt: `requested_at`, `requested_by`, `reason`."""
    resume_step: int | None = None
    """The step from which the job's attempt continues."""
    parent_id: int | None = None
    """The job of which this one is a fork, from `fork_step` on."""
    fork_step: int | None = None
    rows: dict[str, int] = {}
    columns: dict[str, Any] = {}


class CompletenessInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The counts of a job's messages; docs/concepts.md explains the values of `state`.

    `line` summarizes the counts in one line of text.
    """

    state: str
    line: str
    produced: int
    stored: int
    dead_lettered: int
    missing: int
    dropped: int


class StopInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A user's request to stop an attempt of a job."""

    job_id: int
    attempt: int
    requested_at: datetime
    requested_by: str
    reason: str | None = None


class CheckpointInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint, and the state of its file.

    `is_best` is True for the newest checkpoint whose `uri` is the job's current best checkpoint path, and
    `is_last` likewise for its last checkpoint path.
    """

    seq: int
    attempt: int
    ts: int
    """Nanoseconds since 1970."""
    checkpoint_kind: str
    uri: str
    state: str
    is_best: bool = False
    is_last: bool = False
    epoch: int | None = None
    step: int | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    metrics: dict[str, Any] | None = None


def record(kind: type[R], fields: dict[str, Any]) -> R:
    """Convert `fields` to a record of the type `kind`.

    In maps of metrics, strings such as "NaN" become floats. Raises `msgspec.ValidationError` for invalid fields.
    """
    shown = {name: floats_in(value) if name.endswith("metrics") else value for name, value in fields.items()}
    return msgspec.convert(shown, kind, strict=False)
