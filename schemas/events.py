"""The events that workers publish after a commit, on the Redis channels `events:<job_id>` and `events:jobs`.

`python -m trainwire.schemas.events` prints their JSON Schema, which is stored in docs/events.schema.json.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias

import msgspec

from trainwire.schemas.decode_errors import DECODE_ERRORS
from trainwire.schemas.keys import Kind
from trainwire.schemas.non_finite import Number
from trainwire.schemas.wire.messages import FinalStatus, LogType, Status
from trainwire.schemas.wire.validation import InvalidMessage

EVENTS_VERSION: Final = 1


class LogLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One row of training_logs; `ts` is in nanoseconds since 1970 UTC, and `level` and `rank` may be absent."""

    seq: int
    attempt: int
    ts: int
    log_type: LogType
    text: str
    level: str | None = None
    rank: int | None = None


class MetricPoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One row of training_metrics; `ts` is in nanoseconds since 1970 UTC, and `values` has all metrics by name."""

    seq: int
    attempt: int
    ts: int
    values: dict[str, Number]
    epoch: int | None = None
    step: int | None = None
    rank: int | None = None


class SavedCheckpoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One row of training_checkpoints; `ts` is in nanoseconds since 1970 UTC, and null fields are absent."""

    seq: int
    attempt: int
    ts: int
    checkpoint_kind: str
    uri: str
    is_best: bool
    epoch: int | None = None
    step: int | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    metrics: dict[str, Number] | None = None


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """The fields that all events have: the job, its current attempt, and the range of new rows.

    `first_seq` to `last_seq` are the numbers of all rows of `kind` that one transaction added to the job; both are
    null if it added none.
    """

    v: Literal[1] = 1
    job_id: int
    attempt: int
    kind: Kind | None = None
    first_seq: int | None = None
    last_seq: int | None = None
    traceparent: str | msgspec.UnsetType = msgspec.UNSET
    """The span of the run that reported the change; absent if run or workers are not traced (docs/tracing.md)."""


class TrainingLog(_Event, frozen=True, kw_only=True, tag="training_log"):
    """New log rows; `lines` is null if there are too many of them for one event."""

    lines: list[LogLine] | None = None


class TrainingProgress(_Event, frozen=True, kw_only=True, tag="training_progress"):
    """New metric rows or a new progress report, with the committed state of the job.

    `metrics` are the values of the newest point; `points` is null if there are too many for one event.
    """

    status: Status
    current_epoch: int | None = None
    total_epochs: int | None = None
    progress_percent: Number | None = None
    metrics: dict[str, Number] | None = None
    checkpoint_path: str | None = None
    best_checkpoint_path: str | None = None
    points: list[MetricPoint] | None = None


class TrainingCheckpoint(_Event, frozen=True, kw_only=True, tag="training_checkpoint"):
    """New checkpoint rows; `checkpoints` is null if there are too many of them for one event."""

    best_checkpoint_path: str | None = None
    last_checkpoint_path: str | None = None
    checkpoints: list[SavedCheckpoint] | None = None


class TrainingStatus(_Event, frozen=True, kw_only=True, tag="training_status"):
    """The job's status has changed because it started, resumed, stalled or was lost."""

    status: Status
    previous_status: Status | None = None
    reason: str | None = None


class _Ended(_Event, frozen=True, kw_only=True):
    status: FinalStatus
    exit_code: int | None = None
    total_epochs_completed: int | None = None
    final_metrics: dict[str, Number] | None = None
    best_metrics: dict[str, Number] | None = None
    best_epoch: int | None = None
    final_checkpoint_path: str | None = None
    best_checkpoint_path: str | None = None
    mlflow_run_id: str | None = None
    error_message: str | None = None


class TrainingComplete(_Ended, frozen=True, kw_only=True, tag="training_complete"):
    """The job's attempt has ended and has not failed; published again if a later message adds to its results.

    The status `ended` means that the exit code is unknown, and `stopped` that a user has requested the end,
    and `preempted` that the scheduler has ended the training.
    """


class TrainingError(_Ended, frozen=True, kw_only=True, tag="training_error"):
    """The job's attempt has failed; published instead of training_complete."""


class TrainingDeleted(_Event, frozen=True, kw_only=True, tag="training_deleted"):
    """The job was deleted: it disappears from lists of jobs, and its further messages are discarded."""


Event: TypeAlias = (
    TrainingLog
    | TrainingProgress
    | TrainingCheckpoint
    | TrainingStatus
    | TrainingComplete
    | TrainingError
    | TrainingDeleted
)

_encode = msgspec.json.Encoder().encode
_decode: Final[Callable[[bytes | str], Event]] = msgspec.json.Decoder(Event).decode
_decode_many: Final[Callable[[bytes | str], list[Event]]] = msgspec.json.Decoder(list[Event]).decode


def encode_event(event: Event) -> bytes:
    """Encode one event as JSON.

    The caller replaces NaN and infinities by their names (`shown_float`) before; otherwise they become null.
    """
    return _encode(event)


def decode_event(data: bytes | str) -> Event:
    """Decode one event; raise `InvalidMessage` if `data` is not an event of version EVENTS_VERSION."""
    try:
        return _decode(data)
    except DECODE_ERRORS as exc:
        raise InvalidMessage("undecodable", f"not an event of version {EVENTS_VERSION}: {exc}") from exc


def decode_events(data: bytes | str) -> list[Event]:
    """Decode a JSON array of events; raise `InvalidMessage` if `data` is not one of version EVENTS_VERSION."""
    try:
        return _decode_many(data)
    except DECODE_ERRORS as exc:
        raise InvalidMessage("undecodable", f"not events of version {EVENTS_VERSION}: {exc}") from exc


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of an event."""
    schema = msgspec.json.schema(Event)
    for definition in schema["$defs"].values():
        definition["description"] = inspect.cleandoc(definition["description"])  # Python 3.13 did
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "trainwire event", **schema}


def schema_text() -> str:
    """Return the JSON Schema of an event as text, formatted as in docs/events.schema.json."""
    return msgspec.json.format(msgspec.json.encode(json_schema()), indent=2).decode() + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
