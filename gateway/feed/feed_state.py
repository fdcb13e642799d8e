"""The state of a job in its feed: status, progress and results, which are not rows with a `seq`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from trainwire.schemas.events import (
    Event,
    TrainingCheckpoint,
    TrainingComplete,
    TrainingError,
    TrainingProgress,
    TrainingStatus,
)
from trainwire.schemas.non_finite import Number
from trainwire.schemas.wire.messages import FINISHED, Status

_EPOCHS: Final = ("current_epoch", "total_epochs", "progress_percent")
_PROGRESS: Final = ("status", *_EPOCHS, "best_checkpoint_path")
_PATHS: Final = ("best_checkpoint_path", "last_checkpoint_path")
_RESULTS: Final = {
    "status": "status",
    "exit_code": "exit_code",
    "current_epoch": "total_epochs_completed",
    "final_metrics": "final_metrics",
    "best_metrics": "best_metrics",
    "best_epoch": "best_epoch",
    "last_checkpoint_path": "final_checkpoint_path",
    "best_checkpoint_path": "best_checkpoint_path",
    "mlflow_run_id": "mlflow_run_id",
    "error_message": "error_message",
}
"""Fields of `FeedState`, and the fields of completion events with the same values."""


class FeedState(msgspec.Struct, frozen=True, kw_only=True):
    """The columns of training_jobs that events report; NaN and infinities are strings, as in JSON."""

    attempt: int
    status: Status
    status_reason: str | None = None
    current_epoch: int | None = None
    total_epochs: int | None = None
    progress_percent: Number | None = None
    final_metrics: dict[str, Number] | None = None
    best_metrics: dict[str, Number] | None = None
    best_epoch: int | None = None
    best_checkpoint_path: str | None = None
    last_checkpoint_path: str | None = None
    mlflow_run_id: str | None = None
    exit_code: int | None = None
    error_message: str | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the attempt has ended."""
        return self.status in FINISHED

    def updated_by(self, event: Event) -> FeedState:
        """Return a copy of this state with the changes that `event` reports."""
        before = self if event.attempt <= self.attempt else self._next_attempt(event.attempt)
        match event:
            case TrainingStatus():
                return replace(before, status=event.status, status_reason=event.reason)
            case TrainingProgress():
                reason = before.status_reason if event.status == before.status else None
                return replace(before, **_fields(event, _PROGRESS), status_reason=reason)
            case TrainingCheckpoint():
                return replace(before, **_fields(event, _PATHS))
            case TrainingComplete() | TrainingError():
                results = {name: getattr(event, field) for name, field in _RESULTS.items()}
                return replace(before, **results, status_reason=None)
        return before

    def _next_attempt(self, attempt: int) -> FeedState:
        """Return the initial state of an attempt: no results, but the checkpoint paths of the earlier attempts."""
        return FeedState(
            attempt=attempt, status="running", total_epochs=self.total_epochs, **_fields(self, _PATHS)
        )

    def is_newer_than(self, event: Event) -> bool:
        """Return whether the event reports an earlier state than this one, so that it must not be applied.

        Attempts only increase, and only a new attempt reopens a finished job (docs/events.md).
        """
        if event.attempt < self.attempt:
            return True
        reopens = isinstance(event, (TrainingStatus, TrainingProgress)) and event.status not in FINISHED
        return reopens and self.is_finished and event.attempt == self.attempt


def change_events(job_id: int, known: FeedState, stored: FeedState) -> list[Event]:
    """Return events that bring clients from the state `known` to the state `stored`."""
    events = _status_events(job_id, known, stored)
    for event in events:
        known = known.updated_by(event)
    if _fields(stored, _EPOCHS) != _fields(known, _EPOCHS):
        events.append(progress_event(job_id, stored))
    if _fields(stored, _PATHS) != _fields(known, _PATHS):
        events.append(checkpoint_event(job_id, stored))
    return events


def _status_events(job_id: int, known: FeedState, stored: FeedState) -> list[Event]:
    if stored.is_finished:
        compared = ("attempt", *_RESULTS)
        return [_completion_event(job_id, stored)] if _fields(stored, compared) != _fields(known, compared) else []
    compared = ("attempt", "status", "status_reason")
    if _fields(stored, compared) == _fields(known, compared):
        return []
    return [
        TrainingStatus(
            job_id=job_id,
            attempt=stored.attempt,
            status=stored.status,
            previous_status=known.status,
            reason=stored.status_reason,
        )
    ]


def with_metrics_of(earlier: Event | None, later: Event) -> Event:
    """Return `later`; if it is a training_progress without metrics, add those of `earlier`."""
    if isinstance(later, TrainingProgress) and isinstance(earlier, TrainingProgress) and later.metrics is None:
        return replace(later, metrics=earlier.metrics)
    return later


def progress_event(job_id: int, state: FeedState) -> TrainingProgress:
    """Create a training_progress event from the job's state, without rows."""
    fields = _fields(state, ("attempt", *_PROGRESS))
    return TrainingProgress(job_id=job_id, kind="metrics", checkpoint_path=state.last_checkpoint_path, **fields)


def checkpoint_event(job_id: int, state: FeedState) -> TrainingCheckpoint:
    """Create a training_checkpoint event from the job's state, without rows."""
    return TrainingCheckpoint(job_id=job_id, kind="checkpoints", **_fields(state, ("attempt", *_PATHS)))


def _completion_event(job_id: int, state: FeedState) -> TrainingComplete | TrainingError:
    event_type = TrainingError if state.status == "failed" else TrainingComplete
    results = {field: getattr(state, name) for name, field in _RESULTS.items()}
    return event_type(job_id=job_id, attempt=state.attempt, kind="completions", **results)


def _fields(source: FeedState | Event, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(source, name) for name in names}
