"""Messages of trainers: the bodies of the four kinds, and `Message`, which contains a body."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias, get_args

import msgspec
from msgspec import Meta

from trainwire.schemas.keys import Kind
from trainwire.schemas.wire.limits import MAX_KILLED, MAX_SOURCE_CHARS

ATTEMPT_UNKNOWN: Final = 0
"""Attempt number of a trainer that does not know its attempt; workers determine it (docs/wire-format.md)."""

MAX_WORLD_SIZE: Final = 1_000_000
WorldSize: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_WORLD_SIZE)]
"""Number of ranks of an attempt."""
SourceName: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_SOURCE_CHARS)]

Status = Literal["pending", "running", "completed", "failed", "ended", "stopped", "preempted", "stalled", "lost"]
Outcome = Literal["completed", "failed", "ended"]
FinalStatus = Literal["completed", "failed", "ended", "stopped", "preempted"]
FINISHED: Final = ("completed", "failed", "ended", "stopped", "preempted")
"""Statuses of an attempt that has ended.

`ended` means that the exit code is unknown, `stopped` that a user has requested the end, and `preempted` that the
scheduler has ended the training.
"""

LogType = Literal["stdout", "stderr"]
LOG_TYPES: Final[tuple[LogType, ...]] = get_args(LogType)

FREE_MAPS: Final = ("params", "tags", "provenance")
"""Fields of `Metrics` that may contain any JSON object, within the limits of `trainwire.schemas.wire.limits`."""
PROVENANCE_ITEMS: Final = (
    *("command", "folder", "git", "diff", "host", "user", "python", "packages"),
    *("gpu", "container", "scheduler", "variables"),
)
"""The allowed keys of `provenance`, which describes how to reproduce an attempt (docs/provenance.md)."""


class Logs(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Lines of stdout or stderr; `ts` has one time per line, in nanoseconds since 1970 UTC.

    `started_at`, which every kind of body has, is the start time of the source; sources send it with
    ATTEMPT_UNKNOWN. They send `resume_step` with it if they continue a job from this step: they then begin a new
    attempt, even if the previous one has not ended.
    """

    log_type: LogType
    lines: list[str]
    ts: list[int]
    levels: list[str | None] | None = None
    rank: int | None = None
    started_at: int | None = None
    resume_step: int | None = None


class Point(msgspec.Struct, omit_defaults=True, kw_only=True, gc=False):
    """Metric values measured at one time; NaN and infinities are valid."""

    ts: int
    values: dict[str, float]
    epoch: int | None = None
    step: int | None = None
    checkpoint_path: str | None = None


class Progress(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Progress of the job; a field that is absent leaves the stored value unchanged.

    `resume_step` is the step from which the attempt continues. Later points of earlier attempts are rolled back.
    """

    status: Status | None = None
    current_epoch: int | None = None
    total_epochs: int | None = None
    progress_percent: float | None = None
    resume_step: int | None = None


AlertLevel = Literal["info", "warning", "error"]
ALERT_LEVELS: Final[tuple[AlertLevel, ...]] = get_args(AlertLevel)
"""In ascending order of severity."""


class Alert(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A message of the training to people; alert rules define where it is sent (docs/alerts.md)."""

    ts: int
    title: str
    text: str = ""
    level: AlertLevel = "info"


class Metrics(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Points and progress, and name, params, tags, provenance and alerts of the attempt; each part is optional.

    A source's first message has its heartbeat interval (`heartbeat_s`) and, if known, the number of ranks of the
    attempt (`world_size`). `launcher` is true for a process that starts the trainers of one machine; its `rank` is
    then the number of the machine. `provenance` is merged key by key into the provenance of the attempt. A fork of
    another job has that job's number (`parent_id`), and the step from which it continues
    (`fork_step`).
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
    """One checkpoint file or folder, identified by its URI.

    `sha256` is the hash of the file, or of the folder's manifest, in hex. `store_checksum` is the checksum that
    the object store reports (`ChecksumSHA256` in S3). `upload_error` is the reason why the upload failed; `uri` is
    then still a path on the trainer's machine.
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
    """The end of one source. The outcome follows `stopped` or `preempted`, else the exit code, else `status`.

    The status `ended` only ends the source, for example a forked child, and leaves the job's status unchanged;
    with `exit_unknown` the training process itself ended with an unknown exit code. `of` marks an inferred end:
    this source sent what source `of` left in its spool, and found no completion there. `produced` and `dropped`
    then count the messages of `of`, and a completion from `of` itself replaces this one, in whichever order the
    two arrive. `world_size` and `launcher` repeat the values of the source's first message. `stopped` is True if
    the source ended because of a request to stop, and `preempted` if its scheduler ended it; `status` is then
    `failed` for workers that do not know the field. `killed` are sources that a launcher has seen begin, and end
    without a completion; they may have sent nothing.
    """

    ts: int
    status: Outcome
    exit_code: int | None = None
    exit_unknown: bool = False
    stopped: bool = False
    preempted: bool = False
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
    killed: Annotated[list[SourceName], Meta(max_length=MAX_KILLED)] | None = None
    started_at: int | None = None
    resume_step: int | None = None

    @property
    def outcome(self) -> FinalStatus:
        """The outcome: `stopped` or `preempted`, otherwise by the exit code, or `status` if there is none."""
        if self.stopped:
            return "stopped"
        if self.preempted:
            return "preempted"
        if self.exit_code is None:
            return self.status
        return "completed" if self.exit_code == 0 else "failed"

    @property
    def is_of_job(self) -> bool:
        """Whether this completion sets the job's status; otherwise it only ends its source."""
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
    """One decoded stream entry: job, attempt, source, number (`seq`) within source and kind, and body.

    An entry of several messages has the number of the last one, and `parts`: how many lines or points of the body
    belong to each.
    """

    kind: Kind
    job_id: int
    attempt: int
    source: str
    seq: int
    body: Body
    parts: tuple[int, ...] = ()

    @property
    def first(self) -> int:
        """The number of the first message in the entry."""
        return self.seq - max(len(self.parts) - 1, 0)
