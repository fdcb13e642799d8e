"""The messages of trainers: the bodies of the four kinds, and the message that carries one."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias, get_args

import msgspec
from msgspec import Meta

from trainwire.schemas.keys import Kind
from trainwire.schemas.limits import MAX_SOURCE_CHARS

ATTEMPT_UNKNOWN: Final = 0
"""Sent by a trainer that does not know its attempt: the worker decides (docs/wire-format.md)."""

MAX_WORLD_SIZE: Final = 1_000_000
WorldSize: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_WORLD_SIZE)]
"""Number of ranks of an attempt."""
SourceName: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_SOURCE_CHARS)]

Status = Literal["pending", "running", "completed", "failed", "ended", "stopped", "stalled", "lost"]
Outcome = Literal["completed", "failed", "ended"]
FinalStatus = Literal["completed", "failed", "ended", "stopped"]
FINISHED: Final = ("completed", "failed", "ended", "stopped")
"""Statuses of an attempt that has ended: `ended` with an unknown exit code, `stopped` at a user's request."""


FREE_MAPS: Final = ("params", "tags", "provenance")
"""Fields of metrics that are maps of anything, each within the limits of `trainwire.schemas.limits`."""
PROVENANCE_ITEMS: Final = (
    *("command", "folder", "git", "diff", "host", "user", "python", "packages"),
    *("gpu", "container", "scheduler", "variables"),
)
"""The allowed keys of `provenance`, which describe how to reproduce a run (docs/provenance.md)."""


class Logs(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Lines of one output stream, with one time per line (integers, nanoseconds since 1970 UTC).

    `started_at`, in every kind of body, is the start of the source; sources send it with ATTEMPT_UNKNOWN. So is
    `resume_step`, for a source that begins a new attempt from this step even if the one before has not ended.
    """

    log_type: Literal["stdout", "stderr"]
    lines: list[str]
    ts: list[int]
    levels: list[str | None] | None = None
    rank: int | None = None
    started_at: int | None = None
    resume_step: int | None = None


class Point(msgspec.Struct, omit_defaults=True, kw_only=True, gc=False):
    """Values measured at one moment; NaN and infinities are legal values."""

    ts: int
    values: dict[str, float]
    epoch: int | None = None
    step: int | None = None
    checkpoint_path: str | None = None


class Progress(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Progress of the job; an absent field leaves the stored value unchanged.

    `resume_step` is the step from which the attempt goes on: later points of earlier attempts are rolled back.
    """

    status: Status | None = None
    current_epoch: int | None = None
    total_epochs: int | None = None
    progress_percent: float | None = None
    resume_step: int | None = None


AlertLevel = Literal["info", "warning", "error"]
ALERT_LEVELS: Final[tuple[AlertLevel, ...]] = get_args(AlertLevel)
"""From the least to the most severe."""


class Alert(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A text of the training for people, which rules send to their addresses (docs/alerts.md)."""

    ts: int
    title: str
    text: str = ""
    level: AlertLevel = "info"


class Metrics(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Points, progress, and name, params, tags and alerts of the run; every part may be absent or empty.

    The first message of a source has `heartbeat_s`, its interval of heartbeats, and, if known, `world_size`, the
    number of ranks of the attempt. `launcher` is true for a process that starts the trainers of a machine: its
    rank is the number of the machine, not of a process. `provenance` is merged item by item with the attempt's. A
    fork has the number of its `parent`, and the step of it from which it goes on.
    """

    points: list[Point] = []
    progress: Progress | None = None
    name: str | None = None
    params: dict[str, Any] | None = None
    tags: dict[str, Any] | None = None
    provenance: dict[str, Any] | None = None
    mlflow_run_id: str | None = None
    alerts: list[Alert] | None = None
    rank: int | None = None
    world_size: WorldSize | None = None
    launcher: bool | None = None
    heartbeat_s: Annotated[float, Meta(gt=0)] | None = None
    parent_id: int | None = None
    fork_step: int | None = None
    ts: int | None = None
    started_at: int | None = None
    resume_step: int | None = None


class Checkpoint(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One checkpoint file or folder, named by its URI.

    `sha256` is the hash of the file (of a folder: of its manifest), in hex. `store_checksum` is the checksum that
    the object store reports, S3's `ChecksumSHA256`. `upload_error` is the reason why `uri` is still a path on the
    trainer's machine.
    """

    ts: int
    kind: str
    uri: str
    epoch: int | None = None
    step: int | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    store_checksum: str | None = None
    upload_error: str | None = None
    is_best: bool | None = None
    metrics: dict[str, float] | None = None
    started_at: int | None = None
    resume_step: int | None = None


class Completion(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The end of one source; an exit code takes precedence over `status`.

    `ended` does not change the job's status: a forked child has ended. `exit_unknown`: the process of the
    training itself has ended with an exit code that could not be determined. `of` marks an inferred end: this
    source sends the leftovers of source `of`, found no completion among them, and `produced` and `dropped` count
    the messages of `of`. A completion sent by `of` replaces it, in whichever order the two arrive. `world_size`
    and `launcher` repeat the values of the source's first message. `stopped`: the source has received a request to
    stop, and has ended because of it.
    """

    ts: int
    status: Outcome
    exit_code: int | None = None
    exit_unknown: bool = False
    stopped: bool = False
    total_epochs_completed: int | None = None
    final_metrics: dict[str, float] | None = None
    best_metrics: dict[str, float] | None = None
    best_epoch: int | None = None
    final_checkpoint_path: str | None = None
    best_checkpoint_path: str | None = None
    last_checkpoint_path: str | None = None
    mlflow_run_id: str | None = None
    error_message: str | None = None
    traceback: str | None = None
    produced: dict[str, int] | None = None
    dropped: dict[str, int] | None = None
    rank: int | None = None
    world_size: WorldSize | None = None
    launcher: bool | None = None
    of: SourceName | None = None
    started_at: int | None = None
    resume_step: int | None = None

    @property
    def outcome(self) -> FinalStatus:
        """The outcome: `stopped`, else by the exit code, or by `status` if there is no exit code."""
        if self.stopped:
            return "stopped"
        if self.exit_code is None:
            return self.status
        return "completed" if self.exit_code == 0 else "failed"

    @property
    def is_of_job(self) -> bool:
        """Whether it sets the job's status; else it only ends a source."""
        return (self.status != "ended" or self.exit_unknown) and self.of is None


Body: TypeAlias = Logs | Metrics | Checkpoint | Completion
BODY_TYPES: Final[dict[Kind, type[Body]]] = {
    "logs": Logs,
    "metrics": Metrics,
    "checkpoints": Checkpoint,
    "completions": Completion,
}
KIND_OF_BODY: Final[dict[type[Body], Kind]] = {body_type: kind for kind, body_type in BODY_TYPES.items()}


class Message(msgspec.Struct, frozen=True):
    """One decoded entry: its job, attempt and source, its number within source and kind, and its body."""

    kind: Kind
    job_id: int
    attempt: int
    source: str
    seq: int
    body: Body
