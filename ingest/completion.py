"""How a run ended, and the completion that says so."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from traceback import TracebackException
from typing import Any, Final

from trainwire.ingest.history import History
from trainwire.ingest.process.exits import exits
from trainwire.ingest.process.interruptions import raise_interruption
from trainwire.ingest.sanitize import plain_text
from trainwire.schemas.messages import Completion, Outcome

MAX_TRACEBACK_CHARS: Final = 100_000


@dataclass(frozen=True)
class Ending:
    """Completed or failed, and why; ended where the exit code is not known."""

    status: Outcome = "completed"
    exit_code: int | None = None
    error_message: str | None = None
    traceback: str | None = None


def ending(status: str | None, exit_code: int | None, error: object) -> Ending:
    """Return the ending from what is known of it; `status` is completed, failed, ended or None."""
    if isinstance(error, SystemExit):
        return _system_exit(error)
    if status == "ended" and exit_code is None and error is None:
        return Ending("ended")
    is_failure = status == "failed" or (status != "completed" and bool(error is not None or exit_code))
    if isinstance(error, BaseException):
        message, text = _shown(error)
    else:
        message, text = "" if error is None else plain_text(error), None
    return Ending("failed" if is_failure else "completed", exit_code, message or None, text)


def ending_at_exit() -> Ending:
    """Return how the interpreter exits, where nobody finished the run."""
    end = exits.process_end()
    known = ending(None, None, end.error)
    return known if end.is_known else replace(known, status="ended", exit_code=None)


def completion(
    end: Ending, history: History, started_at: int, place: Mapping[str, Any], said: Mapping[str, Any]
) -> Completion:
    """Build the completion from the run's history; `said` holds values of the caller of `finish`, which go first.

    `place` is what a source states of itself: `rank`, `world_size`, `launcher`.
    """
    best_epoch = said.get("best_epoch")
    return Completion(
        ts=time.time_ns(),
        status=end.status,
        exit_unknown=end.status == "ended",
        exit_code=end.exit_code,
        total_epochs_completed=history.epoch,
        final_metrics=(said.get("final_metrics") or history.metrics) or None,
        best_metrics=said.get("best_metrics") or history.best_metrics,
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
    """Return how `sys.exit(code)` ends a process: None is 0, a text is printed and is 1, a number has eight bits.

    A number that does not fit into a C long is -1 (CPython, `_Py_HandleSystemExit`).
    """
    code = error.code
    if code is not None and not isinstance(code, int):
        return Ending("failed", 1, plain_text(code))
    number = int(code or 0) & 0xFF if -(2**63) <= (code or 0) < 2**63 else 0xFF
    return Ending("failed", number, f"exit code {number}") if number else Ending("completed", 0)


def _shown(error: BaseException) -> tuple[str, str | None]:
    """Return message and traceback of an exception, as far as it can be shown."""
    try:
        details = TracebackException.from_exception(error)
        message = "".join(details.format_exception_only()).strip()
        return message, "".join(details.format())[-MAX_TRACEBACK_CHARS:]
    except Exception as exc:  # noqa: BLE001 - foreign code: an exception may have properties that raise
        raise_interruption(exc)
        return f"{type(error).__name__}: {plain_text(error)}", None
