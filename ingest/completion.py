"""Builds the completion message of a run from its end and from the last values that it reported."""

from __future__ import annotations

import time
from collections.abc import Mapping
from traceback import TracebackException
from typing import Any, Final, NamedTuple

import msgspec

from trainwire.ingest.process.exits import exits
from trainwire.ingest.process.interruptions import raise_interruption
from trainwire.ingest.sanitize import plain_text
from trainwire.schemas.checkpoint_keys import ARTIFACT
from trainwire.schemas.wire.messages import Checkpoint, Completion, Outcome, Progress

MAX_TRACEBACK_CHARS: Final = 100_000


class Ending(NamedTuple):
    """The final status of a run and its cause; the status is `ended` if the exit code is unknown.

    A pre-empted run has the status `failed` and `preempted`.
    """

    status: Outcome = "completed"
    exit_code: int | None = None
    error_message: str | None = None
    traceback: str | None = None
    preempted: bool = False


class History(msgspec.Struct):
    """The values of a run that its completion repeats: last epoch, last metrics, last and best checkpoint."""

    total_epochs: int | None = None
    epoch: int | None = None
    metrics: dict[str, float] = msgspec.field(default_factory=dict)
    best_metrics: dict[str, float] | None = None
    best_epoch: int | None = None
    best_checkpoint_path: str | None = None
    last_checkpoint_path: str | None = None
    final_checkpoint_path: str | None = None

    def progress_to(self, epoch: int | None, percent: float | None = None) -> Progress:
        """Record `epoch`, and return the job's progress.

        If `percent` is None, it is computed from the epochs, if both are known.
        """
        if epoch is not None:
            self.epoch = epoch
        if percent is None and self.epoch is not None and self.total_epochs:
            percent = min(100.0, max(0.0, 100.0 * self.epoch / self.total_epochs))
        return Progress(current_epoch=self.epoch, total_epochs=self.total_epochs, progress_percent=percent)

    def note_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Record the location of a checkpoint, and for the best one its epoch and metrics.

        The location of an artifact is not recorded as that of the last checkpoint.
        """
        if not checkpoint.kind.startswith(ARTIFACT):
            self.last_checkpoint_path = checkpoint.uri
        if checkpoint.kind == "final":
            self.final_checkpoint_path = checkpoint.uri
        if checkpoint.is_best:
            self.best_checkpoint_path = checkpoint.uri
            self.best_epoch = checkpoint.epoch
            self.best_metrics = checkpoint.metrics


def ending(status: str | None, exit_code: int | None, error: object) -> Ending:
    """Return the `Ending` of a run that ended with `status`, `exit_code` and `error`, as far as they are given.

    `status` is `completed`, `failed`, `preempted`, `ended` or None; `error` is an exception, a text or None.
    """
    if isinstance(error, SystemExit):
        return _system_exit(error)._replace(preempted=status == "preempted")
    if status == "ended" and exit_code is None and error is None:
        return Ending("ended")
    is_preempted = status == "preempted"
    is_wrong = status != "completed" and bool(error is not None or exit_code)
    is_failure = is_preempted or status == "failed" or is_wrong
    if isinstance(error, BaseException):
        message, text = _shown(error)
    else:
        message, text = "" if error is None else plain_text(error), None
    return Ending("failed" if is_failure else "completed", exit_code, message or None, text, is_preempted)


def ending_at_exit() -> Ending:
    """Return the ending of a run that is still open when the interpreter exits."""
    end = exits.process_end()
    known = ending(None, None, end.error)
    return known if end.is_known else known._replace(status="ended", exit_code=None)


def completion(
    end: Ending, history: History, started_at: int, place: Mapping[str, Any], results: Mapping[str, Any]
) -> Completion:
    """Build the completion message of a run from its ending and `history`.

    `results` are arguments of `finish`; they override the values in `history`. `place` has the fields `rank`,
    `world_size` and `launcher` of the completion, and `stopped` and `killed` if they are set.
    """
    best_epoch = results.get("best_epoch")
    return Completion(
        ts=time.time_ns(),
        status=end.status,
        exit_unknown=end.status == "ended",
        exit_code=end.exit_code,
        preempted=end.preempted,
        total_epochs_completed=history.epoch,
        final_metrics=(results.get("final_metrics") or history.metrics) or None,
        best_metrics=results.get("best_metrics") or history.best_metrics,
        best_epoch=history.best_epoch if best_epoch is None else best_epoch,
        final_checkpoint_path=history.final_checkpoint_path,
        best_checkpoint_path=history.best_checkpoint_path,
        last_checkpoint_path=history.last_checkpoint_path,
        error_message=end.error_message,
        traceback=end.traceback,
        **place,
        started_at=started_at,
    )


def _system_exit(error: SystemExit) -> Ending:
    """Return the ending of a process by `sys.exit(code)`.

    None is exit code 0, a text is exit code 1, and of a number only the lowest eight bits count. A number that
    does not fit into a C long counts as -1 (CPython, `_Py_HandleSystemExit`).
    """
    code = error.code
    if code is not None and not isinstance(code, int):
        return Ending("failed", 1, plain_text(code))
    number = int(code or 0) & 0xFF if -(2**63) <= (code or 0) < 2**63 else 0xFF
    return Ending("failed", number, f"exit code {number}") if number else Ending("completed", 0)


def _shown(error: BaseException) -> tuple[str, str | None]:
    """Return message and traceback of an exception; the traceback is None if it cannot be formatted."""
    try:
        details = TracebackException.from_exception(error)
        message = "".join(details.format_exception_only()).strip()
        return message, "".join(details.format())[-MAX_TRACEBACK_CHARS:]
    except Exception as exc:  # noqa: BLE001 - foreign code: an exception may have properties that raise
        raise_interruption(exc)
        return f"{type(error).__name__}: {plain_text(error)}", None
