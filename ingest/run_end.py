"""Finishes a run: by `finish`, at the end of its `with` block or of its process, or on SIGTERM."""

from __future__ import annotations

import atexit
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from signal import SIGTERM
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from trainwire.ingest.completion import Ending, History, completion, ending, ending_at_exit
from trainwire.ingest.identity.open_runs import open_runs
from trainwire.ingest.pickling import SharedRun
from trainwire.ingest.process.clock import monotonic_s
from trainwire.ingest.process.exits import TERMINATED, exits, finish_with_multiprocessing, terminations
from trainwire.ingest.process.launcher_folder import leave_traceback, note_end, note_reader_of_stop
from trainwire.ingest.process.preemption import marked_reason
from trainwire.ingest.receipt import Receipt
from trainwire.ingest.sending.session import CHILD_FLUSH_S, RESERVED_S, Session
from trainwire.ingest.strict import NotStored
from trainwire.schemas.wire.limits import MAX_KILLED

if TYPE_CHECKING:
    from trainwire.ingest.tracing import RunTrace


class RunEnd(SharedRun):
    """Mixin of `Run`: the methods that finish it. The first call finishes the run, later calls change nothing."""

    _session: Session
    _history: History
    _place: dict[str, Any]
    _is_strict: bool
    _launcher_folder: Path | None
    _cancel_end_of_target: Callable[[], object]
    _log_caught: Callable[[], None] | None
    _trace: RunTrace | None
    _provenance_sent: threading.Event | None
    _has_read_stop = False
    killed_sources: Sequence[str] = ()
    """Sources of the launcher's command that have ended without a completion."""
    _is_terminated = False
    """Whether the launcher has terminated the command because of a request to stop."""

    @property
    def should_stop(self) -> bool:
        """Whether a user has asked this training to stop (docs/stop.md); reading it makes no network request.

        A training loop can end on it: `if run.should_stop: break`. The status of the job is then `stopped`.
        """
        if self._launcher_folder is not None and not self._has_read_stop:
            note_reader_of_stop(self._launcher_folder)
        self._has_read_stop = True
        return self._session.should_stop()

    def _is_stopped_by(self, end: Ending) -> bool:
        """Return whether a run with the ending `end` ended because a user asked it to stop."""
        is_success = end.status != "failed" and not end.exit_code
        if is_success and self._session.has_stopped_children():
            return True
        if not self._session.stop.received.is_set():
            return False
        return self._is_terminated or end.error_message == TERMINATED or (self._has_read_stop and is_success)

    def renew_after_fork(self) -> None:
        """In a child process that multiprocessing forked, arrange that the run is finished when the child ends."""
        finish_with_multiprocessing(self, RunEnd._finish_at_exit)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        receipt = self._finish(ending(None, None, error), {}, None)
        if error is None:
            self._checked(receipt)

    def _checked(self, receipt: Receipt) -> Receipt:
        """Return `receipt`; for a strict run, raise `NotStored` if messages are not stored.

        It raises once, and only in the process that created the run.
        """
        is_strict, self._is_strict = self._is_strict and self._session.is_creator, False
        if is_strict and receipt.stored != receipt.produced:
            raise NotStored(self.job_id, receipt)
        return receipt

    def _finish(self, end: Ending, results: Mapping[str, Any], timeout_s: float | None) -> Receipt:
        place = self._place | ({"stopped": True} if self._is_stopped_by(end) else {})
        if self.killed_sources:
            place["killed"] = list(self.killed_sources[:MAX_KILLED])
        if self._is_launched:
            end = self._as_preempted(end)._replace(exit_code=None)
        if self._log_caught is not None:
            log_caught, self._log_caught = self._log_caught, None
            log_caught()
        began_s, trace = monotonic_s(), self._trace if self._session.is_creator else None
        if trace is not None:
            trace.end(end.status, end.exit_code)
        limit_s: float | None = RESERVED_S  # in case ctrl-C interrupts the end of the capture
        try:
            if self._capture is not None:
                self._capture.stop()
            atexit.unregister(self._finish_at_exit)
            self._cancel_end_of_target()
            terminations.forget(self)
            open_runs.end(self)
            limit_s = timeout_s
        finally:
            receipt = self._session.finish(
                lambda: completion(self._logged_once(end), self._history, self._started_at, place, results),
                limit_s,
                self._provenance_sent,
            )
        if self._launcher_folder is not None:
            note_end(self._launcher_folder, self._session.outbox.origin.source)
        if trace is not None:
            trace.await_export(math.inf if timeout_s is None else began_s + timeout_s - monotonic_s())
        return receipt

    def _as_preempted(self, end: Ending) -> Ending:
        """Return `end`; if it is a failure after the launcher was pre-empted, as a pre-emption."""
        folder = self._launcher_folder if end.status == "failed" else None
        reason = None if folder is None else marked_reason(folder)
        if reason is None:
            return end
        has_cause = end.error_message not in {None, TERMINATED}
        message = f"{reason}: {end.error_message}" if has_cause else reason
        return end._replace(preempted=True, error_message=message)

    def _logged_once(self, end: Ending) -> Ending:
        """Return `end`; if its traceback is logged elsewhere, without this traceback.

        It is logged elsewhere if it was captured as output, or if the launcher will log it.
        """
        text, folder = end.traceback, self._launcher_folder
        if text is None:
            return end
        is_left = folder is not None and leave_traceback(folder, self._session.outbox.origin.source, text)
        return end._replace(traceback=None) if is_left or self._session.lines.printed.contain(text) else end

    def _finish_at_exit(self) -> None:
        self._finish(ending_at_exit(), {}, None if self._session.is_creator else CHILD_FLUSH_S)
        exits.keep_interrupt()

    def _finish_at_end_of_target(self, error: BaseException | None) -> None:
        self._finish(ending(None, None, error), {}, None)

    def _finish_at_sigterm(self, timeout_s: float) -> None:
        self._finish(Ending("failed", 128 + SIGTERM, TERMINATED), {}, timeout_s)
