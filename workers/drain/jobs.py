"""Defines the state of a job and how each message changes it; the state is one row of `training_jobs`."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, TypeAlias

import msgspec

from trainwire.schemas.checkpoint_keys import ARTIFACT
from trainwire.schemas.times import to_datetime
from trainwire.schemas.wire.heartbeats import shows_progress
from trainwire.schemas.wire.messages import (
    FINISHED,
    PROVENANCE_ITEMS,
    Body,
    Checkpoint,
    Completion,
    FinalStatus,
    Logs,
    Metrics,
    Progress,
    Status,
)
from trainwire.schemas.wire.validation import MAX_ATTEMPT
from trainwire.stores.postgres.columns import RESULTS
from trainwire.stores.postgres.storable_text import storable_text
from trainwire.workers.drain.lifetimes import START_SPREAD, Lifetime, began_at
from trainwire.workers.drain.rows import as_stored, is_best

_CLAIMS: Final = ("ended", "completed", "failed", "preempted", "stopped")
"""Outcomes by precedence: if completions of one attempt contradict each other, the last in this list applies."""

_ALWAYS_REPLACED: Final = {("stopped", "completed"), ("preempted", "completed"), ("stopped", "preempted")}
"""Pairs of a new outcome and a known one that it replaces, whichever has an exit code."""
_End: TypeAlias = tuple[datetime | None, int | None]


class JobState(msgspec.Struct):
    """The columns of one `training_jobs` row that messages change.

    It is a msgspec Struct because it is copied and compared often. Large maps are not loaded from Postgres: if
    `params` or `tags` is None, or `final_metrics` or `best_metrics` is the object `UNLOADED`, the row keeps its
    value.
    """

    id: int
    name: str | None = None
    status: Status = "pending"
    attempt: int = 1
    started_at: datetime | None = None
    completed_at: datetime | None = None
    current_epoch: int | None = None
    total_epochs: int | None = None
    progress_percent: float | None = None
    final_accuracy: float | None = None
    best_epoch: int | None = None
    best_checkpoint_path: str | None = None
    last_checkpoint_path: str | None = None
    best_checkpoint_at: datetime | None = None
    last_checkpoint_at: datetime | None = None
    mlflow_run_id: str | None = None
    exit_code: int | None = None
    error_message: str | None = None
    quiet_since: datetime | None = None
    status_reason: str | None = None
    watched_attempt: int | None = None
    last_log_seq: int = 0
    last_metric_seq: int = 0
    last_checkpoint_seq: int = 0
    resume_step: int | None = None
    parent_id: int | None = None
    fork_step: int | None = None
    final_metrics: dict[str, Any] | None = None
    best_metrics: dict[str, Any] | None = None
    params: dict[str, Any] | None = None
    tags: dict[str, Any] | None = None
    provenance: dict[str, Any] | None = None
    """New items about the code and machine of the attempt.

    Saving merges them with those that are stored. `training_jobs` has no such column: they are stored in
    `training_attempts`.
    """

    @property
    def is_finished(self) -> bool:
        """Whether the newest attempt has ended."""
        return self.status in FINISHED

    def attempt_of_source(
        self, stated: int, known: int | None, began_ns: int | None, resume_step: int | None = None
    ) -> int:
        """Return the attempt to which a source belongs.

        Args:
            stated: the attempt in the messages of the source, or 0 if its trainer does not know the attempt.
            known: the attempt to which the source was assigned earlier, or None. An assignment does not change.
            began_ns: when the source began, or None. A new source belongs to the newest attempt, or to a new
                attempt if the newest one had ended by then. (`trainwire.workers.drain.sources.AttemptSpans` finds
                the attempts of sources that are older than the newest one.)
            resume_step: the step from which the source resumes, or None. If such a source began after the newest
                attempt, it begins a new one even if that has not ended, unless another rank has just resumed from
                the same step.
        """
        if stated:
            return stated
        if known is not None:
            return known
        if resume_step is not None and self._is_rolled_back_by(resume_step, began_ns):
            return min(self.attempt + 1, MAX_ATTEMPT)
        if not self.is_finished or self.completed_at is None:
            return self.attempt
        if began_ns is None or to_datetime(began_ns) <= self.completed_at:
            return self.attempt
        return min(self.attempt + 1, MAX_ATTEMPT)

    def _is_rolled_back_by(self, resume_step: int, began_ns: int | None) -> bool:
        if self.status == "pending" or self.started_at is None or began_ns is None:
            return False
        began = to_datetime(began_ns)
        is_same = self.resume_step == resume_step and abs(began - self.started_at) <= START_SPREAD
        return began > self.started_at and not (is_same and not self.is_finished)

    def is_preceded_by(self, source: Lifetime) -> bool:
        """Return whether start and end times show that the source belongs to an attempt before the newest one."""
        return self.status != "pending" and self.started_at is not None and source.is_before(self.started_at)

    def fold(self, body: Body, attempt: int, *, is_stated: bool = False) -> None:
        """Change this state by one stored message.

        A late message of an earlier attempt changes nothing.

        Args:
            attempt: the attempt to which the source of the message belongs.
            is_stated: whether the message contained the attempt; otherwise it was derived from clock times.
        """
        if attempt < self.attempt and self.status != "pending":
            return
        if attempt > self.attempt or self.status == "pending":
            self._begin(attempt, began_at(body), body.resume_step)
        if isinstance(body, Metrics) and body.heartbeat_s is not None:
            self.watched_attempt = attempt
        if isinstance(body, Completion) and not (body.is_of_job and (is_stated or self._may_end_by(body))):
            return
        if self.status == "lost" or (self.status == "stalled" and shows_progress(body)):
            self.status = "running"
            self.quiet_since = self.status_reason = None
        match body:
            case Metrics():
                self._fold_metrics(body)
            case Checkpoint():
                self._fold_checkpoint(body)
            case Completion():
                self._fold_completion(body)
            case Logs():
                pass

    def _begin(self, attempt: int, began_ns: int | None, resume_step: int | None) -> None:
        """Start a new attempt: clear the end, progress and results of the previous one."""
        self.attempt = attempt
        self.status = "running"
        self.started_at = None if began_ns is None else to_datetime(began_ns)
        self.completed_at = self.exit_code = self.error_message = None
        self.quiet_since = self.status_reason = None
        self.current_epoch = self.progress_percent = None
        self.final_accuracy = self.final_metrics = self.best_metrics = self.best_epoch = None
        self.mlflow_run_id = self.provenance = None
        self.resume_step = resume_step
        # The paths stay because the attempt resumes from them; without times its own first ones replace them.
        self.best_checkpoint_at = self.last_checkpoint_at = None

    def _fold_metrics(self, body: Metrics) -> None:
        self.name = _text_or(body.name, self.name)
        self.params = body.params if body.params is not None else self.params
        self.tags = body.tags if body.tags is not None else self.tags
        self.mlflow_run_id = _text_or(body.mlflow_run_id, self.mlflow_run_id)
        if body.parent_id is not None:
            self.parent_id, self.fork_step = body.parent_id, body.fork_step
        if body.provenance:
            known = {str(item): body.provenance[item] for item in PROVENANCE_ITEMS if item in body.provenance}
            self.provenance = {**(self.provenance or {}), **known} or None
        if body.progress is not None:
            self._fold_progress(body.progress)

    def _fold_progress(self, progress: Progress) -> None:
        if progress.resume_step is not None:
            self.resume_step = progress.resume_step
        if progress.total_epochs is not None:
            self.total_epochs = progress.total_epochs
        if progress.current_epoch is not None:
            self.current_epoch = progress.current_epoch
            self.progress_percent = self._percent_of_epochs()
        if progress.progress_percent is not None:
            self.progress_percent = progress.progress_percent

    def _percent_of_epochs(self) -> float | None:
        if self.current_epoch is None or self.total_epochs is None or self.total_epochs <= 0:
            return self.progress_percent
        return min(100.0, 100.0 * self.current_epoch / self.total_epochs)

    def _fold_checkpoint(self, body: Checkpoint) -> None:
        """Set the job's best and last checkpoint paths, unless its present paths were saved later.

        A checkpoint message arrives late if its upload was retried.
        """
        uri, saved_at = storable_text(body.uri), to_datetime(body.ts)
        if is_best(body) and _is_forward(saved_at, self.best_checkpoint_at):
            self.best_checkpoint_path, self.best_checkpoint_at = uri, saved_at
        is_last = body.kind != "best" and not body.kind.startswith(ARTIFACT)
        if is_last and _is_forward(saved_at, self.last_checkpoint_at):
            self.last_checkpoint_path, self.last_checkpoint_at = uri, saved_at

    def _fold_completion(self, body: Completion) -> None:
        if self._is_decided_by(body):
            self.status = self._outcome_with(body)
            self.completed_at = to_datetime(body.ts)
            self.exit_code = body.exit_code if body.exit_code is not None else self.exit_code
        elif self.status == "preempted" and self.exit_code is None:
            self.exit_code = body.exit_code
        # Several completions may report a failure; the message of one with a traceback is kept.
        if self.error_message is None or body.traceback is not None:
            self.error_message = _text_or(body.error_message, self.error_message)
        if self.status in ("completed", "stopped"):
            self.error_message = None
        self._fold_results(body)

    def _outcome_with(self, body: Completion) -> FinalStatus:
        """Return the job's final status after a completion.

        It is that of the completion, except that `completed` does not replace `stopped` or `preempted`: if a
        training obeys a request to stop, or reports that it is pre-empted, its launcher sees exit code 0 and
        reports a success. `preempted` does not replace `stopped` either.
        """
        if self.status == "stopped" and body.outcome in {"completed", "preempted"}:
            return "stopped"
        return "preempted" if (body.outcome, self.status) == ("completed", "preempted") else body.outcome

    def _may_end_by(self, body: Completion) -> bool:
        """Return False if the completion comes from a process that had ended before the newest attempt began.

        Messages of such a process that arrived earlier may have been stored under the newest attempt.
        """
        source = Lifetime.of(body)
        return source is None or self.started_at is None or not source.is_before(self.started_at)

    def _is_decided_by(self, body: Completion) -> bool:
        """Return whether a completion sets the status of the job.

        Some outcomes always replace others. Otherwise a completion with an exit code takes
        precedence over one without; then a failure over a success, and `stopped` over both, because processes
        fail when other processes of their training stop. Of a failure and a pre-emption, the earlier one is the
        cause of the other.
        """
        if body.outcome not in {"failed", "preempted"} and body.rank:
            return False  # the job ends with the completion of rank 0, or with a failure of any rank
        if not self.is_finished or (body.outcome, self.status) in _ALWAYS_REPLACED:
            return True
        new, known = (to_datetime(body.ts), body.exit_code), (self.completed_at, self.exit_code)
        if (body.outcome, self.status) == ("preempted", "failed"):
            return _is_cause(new, known)
        if (body.outcome, self.status) == ("failed", "preempted"):
            return not _is_cause(known, new)
        if (body.exit_code is None) != (self.exit_code is None):
            return body.exit_code is not None
        return _CLAIMS.index(body.outcome) > _CLAIMS.index(self.status)

    def _fold_results(self, body: Completion) -> None:
        if body.final_metrics is not None:
            self.final_metrics = as_stored(body.final_metrics)
            self.final_accuracy = self.final_metrics.get("accuracy")
        if body.best_metrics is not None:
            self.best_metrics = as_stored(body.best_metrics)
        if body.best_epoch is not None:
            self.best_epoch = body.best_epoch
        if body.total_epochs_completed is not None:
            self.current_epoch = body.total_epochs_completed
            self.progress_percent = self._percent_of_epochs()
        self._fold_final_paths(body)
        self.mlflow_run_id = _text_or(body.mlflow_run_id, self.mlflow_run_id)

    def _fold_final_paths(self, body: Completion) -> None:
        ended_at = to_datetime(body.ts)
        best, last = body.best_checkpoint_path, body.last_checkpoint_path or body.final_checkpoint_path
        if best and _is_final(best, ended_at, self.best_checkpoint_path, self.best_checkpoint_at):
            self.best_checkpoint_path = storable_text(best)
            self.best_checkpoint_at = ended_at if is_remote(best) else self.best_checkpoint_at
        if last and _is_final(last, ended_at, self.last_checkpoint_path, self.last_checkpoint_at):
            self.last_checkpoint_path = storable_text(last)
            self.last_checkpoint_at = ended_at if is_remote(last) else self.last_checkpoint_at


JSON_COLUMNS: Final = (*RESULTS, "params", "tags")
UNLOADED: Final[Any] = object()
"""Placeholder for results of a job that were not read from Postgres."""
COLUMNS: Final = tuple(name for name in JobState.__struct_fields__ if name != "provenance")
LOADED_COLUMNS: Final = tuple(name for name in COLUMNS if name not in JSON_COLUMNS)
"""The columns that are read for each drain; they are the first fields of `JobState`, in the same order."""


FINAL_PATHS: Final = ("best_checkpoint_path", "last_checkpoint_path", "final_checkpoint_path")
"""The fields of a completion that contain the path or URI of a checkpoint."""


def _is_cause(preempted: _End, failed: _End) -> bool:
    """Return whether of a pre-emption and a failure, each with its time and exit code, the pre-emption counts.

    A launcher knows the exit code and the cause of its command's end. A script in it that fails because of the
    same signal reports no exit code, a moment earlier.
    """
    (at, code), (failed_at, failed_code) = preempted, failed
    if code is not None and failed_code is None:
        return True
    return at is not None and (failed_at is None or at <= failed_at)


def _text_or(value: str | None, known: str | None) -> str | None:
    return known if value is None else storable_text(value)


def is_remote(path: str) -> bool:
    """Return whether a checkpoint's path is a URI, not a path on the trainer's machine."""
    return "://" in path


def _is_forward(at: datetime, known_at: datetime | None) -> bool:
    return known_at is None or at >= known_at


def _is_final(path: str, ended_at: datetime, known: str | None, known_at: datetime | None) -> bool:
    """Return whether the checkpoint path of a completion replaces `known`, the path in the job's state.

    A completion may have the local path of a file whose upload was reported: then the URI of the upload stays.
    `known_at` is the time of `known`; None if it comes from an earlier attempt, or is a local path, which the URI
    of a later upload always replaces.
    """
    if not is_remote(path) and known_at is not None and is_remote(known or ""):
        return False
    return _is_forward(ended_at, known_at)
