"""How a job stands, as its listeners were told: status, progress and results, which have no `seq` of their own."""

from __future__ import annotations

from typing import Any, cast

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
from trainwire.schemas.messages import FINISHED, Outcome, Status
from trainwire.schemas.non_finite import Number


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """The columns of training_jobs that events tell of; numbers as JSON can carry them."""

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
        """Tell whether the attempt has ended."""
        return self.status in FINISHED

    def after(self, event: Event) -> Standing:
        """Return how the job stands once this has been told."""
        before = self if event.attempt <= self.attempt else self._begun(event.attempt)
        match event:
            case TrainingStatus():
                return replace(before, status=event.status, status_reason=event.reason)
            case TrainingProgress():
                reason = before.status_reason if event.status == before.status else None
                return replace(before, **_progress(event), status_reason=reason)
            case TrainingCheckpoint():
                best, last = event.best_checkpoint_path, event.last_checkpoint_path
                return replace(before, best_checkpoint_path=best, last_checkpoint_path=last)
            case TrainingComplete() | TrainingError():
                return replace(before, **_results(event))
        return before

    def _begun(self, attempt: int) -> Standing:
        """Return the beginning of an attempt: its results are not known, the files stay."""
        return Standing(
            attempt=attempt,
            status="running",
            total_epochs=self.total_epochs,
            best_checkpoint_path=self.best_checkpoint_path,
            last_checkpoint_path=self.last_checkpoint_path,
        )

    def outdates(self, event: Event) -> bool:
        """Tell whether what the event says of the job was true before what has been told.

        Attempts only grow, and nothing but a new attempt reopens a finished one (docs/events.md).
        """
        if event.attempt < self.attempt:
            return True
        reopens = isinstance(event, (TrainingStatus, TrainingProgress)) and event.status not in FINISHED
        return reopens and self.is_finished and event.attempt == self.attempt


def news(job_id: int, told: Standing, now: Standing) -> list[Event]:
    """Return the events that tell what is different `now`, as the notifier would have said it."""
    said = _news_of_status(job_id, told, now)
    known = told
    for event in said:
        known = known.after(event)
    if _progressed(now) != _progressed(known):
        said.append(progress(job_id, now))
    if _paths(now) != _paths(known):
        said.append(checkpoint_paths(job_id, now))
    return said


def _news_of_status(job_id: int, told: Standing, now: Standing) -> list[Event]:
    if now.is_finished:
        return [_ended(job_id, now)] if _end(now) != _end(told) else []
    if (now.attempt, now.status, now.status_reason) == (told.attempt, told.status, told.status_reason):
        return []
    status = TrainingStatus(
        job_id=job_id,
        attempt=now.attempt,
        status=now.status,
        previous_status=told.status,
        reason=now.status_reason,
    )
    return [status]


def progress(job_id: int, standing: Standing) -> TrainingProgress:
    """Return a training_progress without rows."""
    return TrainingProgress(
        job_id=job_id,
        attempt=standing.attempt,
        kind="metrics",
        status=standing.status,
        current_epoch=standing.current_epoch,
        total_epochs=standing.total_epochs,
        progress_percent=standing.progress_percent,
        checkpoint_path=standing.last_checkpoint_path,
        best_checkpoint_path=standing.best_checkpoint_path,
    )


def checkpoint_paths(job_id: int, standing: Standing) -> TrainingCheckpoint:
    """Return a training_checkpoint without rows."""
    return TrainingCheckpoint(
        job_id=job_id,
        attempt=standing.attempt,
        kind="checkpoints",
        best_checkpoint_path=standing.best_checkpoint_path,
        last_checkpoint_path=standing.last_checkpoint_path,
    )


def _progress(event: TrainingProgress) -> dict[str, Any]:
    names = ("status", "current_epoch", "total_epochs", "progress_percent", "best_checkpoint_path")
    return {name: getattr(event, name) for name in names}


def _results(event: TrainingComplete | TrainingError) -> dict[str, Any]:
    names = ("status", "exit_code", "final_metrics", "best_metrics", "best_epoch")
    more = ("best_checkpoint_path", "mlflow_run_id", "error_message")
    return {name: getattr(event, name) for name in (*names, *more)} | {
        "current_epoch": event.total_epochs_completed,
        "last_checkpoint_path": event.final_checkpoint_path,
        "status_reason": None,
    }


def _ended(job_id: int, standing: Standing) -> TrainingComplete | TrainingError:
    ended = TrainingError if standing.status == "failed" else TrainingComplete
    return ended(
        job_id=job_id,
        attempt=standing.attempt,
        kind="completions",
        status=cast("Outcome", standing.status),
        exit_code=standing.exit_code,
        total_epochs_completed=standing.current_epoch,
        final_metrics=standing.final_metrics,
        best_metrics=standing.best_metrics,
        best_epoch=standing.best_epoch,
        final_checkpoint_path=standing.last_checkpoint_path,
        best_checkpoint_path=standing.best_checkpoint_path,
        mlflow_run_id=standing.mlflow_run_id,
        error_message=standing.error_message,
    )


def _end(standing: Standing) -> object:
    """Return what a completion tells, to be compared."""
    return replace(standing, status_reason=None, total_epochs=None, progress_percent=None)


def _progressed(standing: Standing) -> tuple[object, ...]:
    return standing.current_epoch, standing.total_epochs, standing.progress_percent


def _paths(standing: Standing) -> tuple[object, ...]:
    return standing.best_checkpoint_path, standing.last_checkpoint_path
