"""Messages of trainers: the bodies of the four kinds, and the message that contains one of them."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from trainwire.schemas.keys import Kind

ATTEMPT_UNSAID: Final = 0
"""The attempt of a message whose trainer does not know it: the worker decides (docs/wire-format.md)."""

MAX_WORLD_SIZE: Final = 1_000_000
WorldSize: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_WORLD_SIZE)]
"""Number of ranks of an attempt."""
SourceName: TypeAlias = Annotated[str, Meta(min_length=1, max_length=200)]

Status = Literal["pending", "running", "completed", "failed", "ended", "stalled", "lost"]
Outcome = Literal["completed", "failed", "ended"]
FINISHED: Final = ("completed", "failed", "ended")
"""The statuses of attempts that have ended; `ended` with an unknown exit code."""


class Logs(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Lines of one output stream, with one time per line (integers, nanoseconds since 1970 UTC).

    `started_at`, in every kind of body, is the start of the source. Sources that do not state their attempt set
    it.
    """

    log_type: Literal["stdout", "stderr"]
    lines: list[str]
    ts: list[int]
    levels: list[str | None] | None = None
    rank: int | None = None
    started_at: int | None = None


class Point(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Values measured at one moment; NaN and infinities are legal values."""

    ts: int
    values: dict[str, float]
    epoch: int | None = None
    step: int | None = None
    checkpoint_path: str | None = None


class Progress(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The progress of a job; fields that are None do not change it."""

    status: Status | None = None
    current_epoch: int | None = None
    total_epochs: int | None = None
    progress_percent: float | None = None


class Metrics(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Points, progress, and name, params and tags of the run; every part may be absent or empty.

    The first message of a source has `world_size`, the number of ranks of the attempt, if it is known, and
    `heartbeat_s`, the interval of its heartbeats. With `launcher` the source runs the trainers of its machine, and
    its rank counts machines instead of processes.
    """

    points: list[Point] = []
    progress: Progress | None = None
    name: str | None = None
    params: dict[str, Any] | None = None
    tags: dict[str, Any] | None = None
    mlflow_run_id: str | None = None
    rank: int | None = None
    world_size: WorldSize | None = None
    launcher: bool | None = None
    heartbeat_s: Annotated[float, Meta(gt=0)] | None = None
    ts: int | None = None
    started_at: int | None = None


class Checkpoint(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One checkpoint file or folder.

    `sha256` is the digest of the file (of a folder: of its manifest), in hex. `store_checksum` is the checksum
    that the object store reports, in the format of S3's `ChecksumSHA256`. `upload_error` is the reason why `uri`
    is still a path on the trainer's machine.
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


class Completion(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The end of one source. An exit code takes precedence over the status.

    The status `ended` does not change the job: a forked child has ended. With `exit_unknown` it was the process of
    the training itself, whose exit code is unknown. With `of` it is an inferred end: this source sends spooled
    messages of the source `of`, among which it found no completion, and `produced` and `dropped` are the counts of
    `of`. A completion of `of` itself replaces it, in any order of arrival. `world_size` and `launcher` repeat the
    first message of the source.
    """

    ts: int
    status: Outcome
    exit_code: int | None = None
    exit_unknown: bool = False
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

    @property
    def outcome(self) -> Outcome:
        """The outcome by the exit code, or without one the status."""
        if self.exit_code is None:
            return self.status
        return "completed" if self.exit_code == 0 else "failed"

    @property
    def is_of_job(self) -> bool:
        """Whether the completion sets the status of the job, instead of only ending a source."""
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
    """A decoded entry; `seq` is its number among the messages of its source and kind."""

    kind: Kind
    job_id: int
    attempt: int
    source: str
    seq: int
    body: Body
