"""`Run`: what a training script says, and nothing that could slow it down or stop it."""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401 - libraries import it later: too late when the interpreter ends
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from signal import SIGTERM
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, Unpack, cast

from trainwire.ingest.arguments import Arguments, description, line_texts, moment_ns
from trainwire.ingest.call_guard import forgiving, log_call, metric_call
from trainwire.ingest.completion import Ending, completion, ending, ending_at_exit
from trainwire.ingest.history import History
from trainwire.ingest.hooks.inside import announce_run, hook_into
from trainwire.ingest.identity.announcements import announce
from trainwire.ingest.identity.default_names import default_name, script_of_process
from trainwire.ingest.identity.open_runs import JobNumber, open_runs
from trainwire.ingest.lines import split_lines
from trainwire.ingest.outage import is_passing
from trainwire.ingest.pickling import Handle, Shared, address_of, register
from trainwire.ingest.process.clock import monotonic_s
from trainwire.ingest.process.daemon_pool import message_of
from trainwire.ingest.process.exits import (
    TERMINATED,
    at_end_of_target,
    exits,
    finish_with_multiprocessing,
    terminations,
)
from trainwire.ingest.process.forks import renew_in_children
from trainwire.ingest.process.log_filter import quiet_ours
from trainwire.ingest.process.ranks import Place, checked_place
from trainwire.ingest.process.tracebacks import leave_to_launcher
from trainwire.ingest.provenance.recording import OF_INTERPRETER, recorder
from trainwire.ingest.receipt import Receipt
from trainwire.ingest.run_options import RunOptions
from trainwire.ingest.sanitize import Number, level_name, plain_text, shown
from trainwire.ingest.sending.batching import LogType
from trainwire.ingest.sending.session import CHILD_FLUSH_S, Session
from trainwire.ingest.settings import TrainerSettings, whole_number
from trainwire.ingest.strict import NotStored
from trainwire.ingest.uploads.checkpoint import checkpoint_at, location
from trainwire.ingest.uploads.uploads import UploadChoice
from trainwire.schemas.messages import MAX_WORLD_SIZE, Metrics, Point, Progress
from trainwire.schemas.validation import MAX_ATTEMPT, MAX_ID

if TYPE_CHECKING:
    from trainwire.ingest.output.capture import Capture

quiet_ours()

DEFAULT_TIMEOUT_S: Final = 10.0
RESERVED_S: Final = 3.0
"""What of a timeout is kept for the messages, the completion among them, when uploads take long."""


PROVENANCE_WAIT_S: Final = 1.0
"""How long the end of a short run waits for its provenance."""


class Run(Shared):
    """One process's part in a job: logs, metrics, checkpoints, and at the end the completion.

    Without a `job_id` it is the job of TRAINWIRE_JOB_ID, which `trainwire run` and the run of a parent process
    export, or else a new one with a number of its own; so is each further run of a process. All ranks of a launch
    by torchrun, srun or mpirun get one number, or a `ValueError` with the remedy. A new job without a `name` is
    called after the script.

    No call waits for the network or raises because a store is away. Making a run raises `ValueError` for a value
    that cannot be right (a job id of -1); after that a wrong argument is named in one warning, and the rest of the
    call is taken. Use it as a context manager, or call `finish`.

    A copy of what holds a run holds the same run; so does a pickle in the same process. In another process
    (multiprocessing, joblib, a loaded checkpoint) a pickle becomes a run that reports to the same job and attempt,
    and leaves its begin and its end to the first; it takes the password of Redis from its own environment.

    With `strict` (or TRAINWIRE_STRICT=on) two calls raise a `StrictError`: this one, `RedisAway` where Redis does
    not answer and `RankTaken` where another live trainer is the same job, attempt and rank; and `finish`,
    `NotStored` where not everything is committed by its deadline (docs/strict.md).

    `stall_after_s` promises that the training says something at least that often: a job that is quiet for longer
    is shown as stalled (docs/liveness.md). `world_size` is how many ranks use trainwire, where the environment
    lacks it or has another number: without all of them the job is not complete. `mlflow_run_id` is for a training
    that logs to MLflow itself: see `link_mlflow`.
    """

    def __init__(
        self,
        job_id: int | None = None,
        name: str | None = None,
        *,
        total_epochs: int | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        attempt: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        stall_after_s: float | None = None,
        mlflow_run_id: str | None = None,
        strict: bool | None = None,
        redis_url: str | None = None,
        settings: TrainerSettings | None = None,
    ) -> None:
        settings = (settings or TrainerSettings.from_env()).at(redis_url).promising(stall_after_s).strictly(strict)
        place = checked_place(
            settings.rank if rank is None else whole_number("rank", rank, 0, MAX_ATTEMPT),
            settings.world_size
            if world_size is None
            else whole_number("world_size", world_size, 1, MAX_WORLD_SIZE),
        )
        self.rank: int | None = place.rank
        epochs = None if total_epochs is None else whole_number("total_epochs", total_epochs, 0, MAX_ID)
        about = description(name, params, tags, mlflow_run_id)
        number = open_runs.number_for(settings, place) if job_id is None else JobNumber(_checked_id(job_id))
        self.job_id: int = number.job_id
        parent = settings.parent if job_id is None and not number.is_made else None
        if parent is not None and parent.job_id != self.job_id:
            parent = None
        # Attempts of the environment are those of its own job.
        known = parent or (TrainerSettings() if number.is_made and settings.job_id is not None else settings)
        self.attempt = known.attempt if attempt is None else whole_number("attempt", attempt, 0, MAX_ATTEMPT)
        self._begin(settings, History(epochs), place, None if parent is None else parent.started_at_ns)
        if parent is not None:
            self._join(about)
            return
        if number.is_made and about["name"] is None:
            about["name"] = default_name(script_of_process(), self.job_id)
        if not settings.vitals.is_launcher:
            open_runs.begin(self, self.job_id, self.attempt, self._started_at)
        running = Progress(status="running", total_epochs=epochs)
        beat_s = settings.vitals.interval_s
        self._session.take_metric(
            Metrics(ts=self._started_at, progress=running, heartbeat_s=beat_s, **about, **self._place)
        )
        announce_run()
        exits.watch()
        terminations.watch(self, self._finish_at_sigterm)
        if not settings.vitals.is_launcher:
            wanted = settings.provenance
            self.record_provenance(wanted.intersection(OF_INTERPRETER) if self._is_launched else wanted)
        if not settings.vitals.is_launcher and (number.is_made or not self._is_launched):
            announce(settings, number, about["name"], self.rank)

    def _join(self, about: Mapping[str, Any]) -> None:
        """Report to the run of the parent process, which has a name and an end of its own."""
        said = {name: about[name] for name in ("params", "tags") if about[name]}
        if said:
            self._session.take_metric(Metrics(ts=time.time_ns(), **said))
        terminations.watch(self, self._finish_at_sigterm)

    def _begin(
        self,
        settings: TrainerSettings,
        history: History,
        place: Place,
        joined_run_of_ns: int | None = None,
        token: str | None = None,
    ) -> None:
        """Begin to take messages; with `joined_run_of_ns`, as a part of a run that another process began then."""
        self._place: dict[str, Any] = {
            "rank": place.rank,
            "world_size": place.world_size,
            "launcher": settings.vitals.is_launcher or None,
        }
        # The launcher logs the output of its own job, and knows the exit code of the whole command.
        self._is_launched = settings.is_captured and settings.job_id in (None, self.job_id)
        self._traceback_folder = settings.traceback_folder if self._is_launched else None
        self._is_strict = settings.strict
        self._capture: Capture | None = None
        self._provenance_sent: threading.Event | None = None
        self._log_caught: Callable[[], None] | None = None
        self._history = history
        self._address = address_of(settings)
        self._started_at: int = joined_run_of_ns or time.time_ns()
        self._session = Session(
            self.job_id,
            self.attempt,
            self.rank,
            settings,
            self._history.note_checkpoint,
            joined_run_of_ns=joined_run_of_ns,
        )
        self._arguments = Arguments(self._session.refuse)
        self._uploads_patience_s = settings.checkpoints.finish_s
        self._token = register(self, token)
        atexit.register(self._finish_at_exit)
        self._cancel_end_of_target = at_end_of_target(self._finish_at_end_of_target)
        renew_in_children(self)

    @classmethod
    def _joined(cls, handle: Handle, settings: TrainerSettings) -> Run:
        """Return a run that sends what this process reports for a run of another process."""
        run = cls.__new__(cls)
        run.job_id, run.attempt, run.rank = handle["job_id"], handle["attempt"], handle["rank"]
        run._begin(settings, History(), Place(run.rank), handle["started_at"], handle["token"])  # noqa: SLF001
        run._is_launched = run._is_launched or handle["is_captured"]  # noqa: SLF001
        finish_with_multiprocessing(run, Run._finish_at_exit)
        return run

    @classmethod
    def from_env(
        cls,
        *,
        job_id: int | None = None,
        name: str | None = None,
        settings: TrainerSettings | None = None,
        **overrides: Unpack[RunOptions],
    ) -> Self:
        """Make a run of the job in TRAINWIRE_JOB_ID, which each run of this process joins; `overrides` are Run's.

        Without the variable it is `Run(...)`.
        """
        settings = settings or TrainerSettings.from_env()
        has_parent = settings.parent is not None and settings.parent.job_id == settings.job_id
        if job_id is None and not has_parent:
            job_id = settings.job_id
        return cls(job_id, name, settings=settings, **overrides)

    @property
    def source(self) -> str:
        """Return the name under which this process numbers its messages."""
        return self._session.outbox.origin.source

    @forgiving(log_call)
    def log(
        self,
        text: object,
        *,
        log_type: LogType = "stdout",
        level: str | None = None,
        epoch: float | None = None,
        step: int | None = None,
    ) -> None:
        """Take a text as one log line, or as several where it has newlines.

        A mapping of names to numbers is no text: `run.log({"loss": 0.3}, step=3)` is
        `run.metric(values={"loss": 0.3}, step=3)`, as users of other trackers expect.
        """
        if type(text) is not str and isinstance(text, Mapping):
            self.metric(values=text, epoch=epoch, step=step)
            return
        ts = time.time_ns()
        line = plain_text(text)
        lines = split_lines(line) if "\n" in line else (line,)
        self._session.take_lines(lines, self._arguments.log_type(log_type), ts, level_name(level))

    def log_lines(self, lines: Sequence[str], log_type: LogType, ts: int) -> None:
        """Take whole lines that were printed at `ts` (nanoseconds since 1970), with the levels that they name.

        Lines that come faster than the sender can write them to the disk are written here: it then takes longer.
        """
        self._session.take_printed(line_texts(lines), self._arguments.log_type(log_type), moment_ns(ts))
        self._session.relieve()

    def log_traceback(self, text: str) -> None:
        """Take a traceback as one line, unless all of its lines are among those that were just printed."""
        if not self._session.printed.contain(text):
            self.log_lines([f"TRACEBACK:\n{text}"], "stderr", time.time_ns())

    def record_provenance(self, items: frozenset[str], command: Sequence[str] | None = None) -> None:
        """Collect these items of the provenance and send them, by rank 0 for all; a launcher gives its command."""
        if items and not self.rank:

            def send(answer: dict[str, Any]) -> None:
                self._session.take_metric_late(Metrics(ts=time.time_ns(), provenance=answer))

            self._provenance_sent = recorder.record(items, send, command)

    def note_output(self) -> None:
        """Count output of the training as a sign of life, also where it completes no line (a progress bar)."""
        self._session.note_output()

    @forgiving(metric_call)
    def metric(
        self,
        /,
        *,
        epoch: float | None = None,
        step: int | None = None,
        values: Mapping[str, Number] | None = None,
        checkpoint_path: str | os.PathLike[str] | None = None,
        **named: Number,
    ) -> None:
        """Take values measured now; names that are no identifiers go into `values`. None is not a value.

        What is no number is dropped, counted, and named in one warning; it never raises.
        """
        ts = time.time_ns()
        arguments = self._arguments
        said = named if values is None else {**arguments.mapping("values", values), **named}
        numbers = arguments.numbers("values", said)
        at_epoch, at_step = arguments.count("epoch", epoch), arguments.count("step", step)
        if numbers:
            self._history.metrics.update(numbers)
            path = location(checkpoint_path) or None
            self._session.take_metric(
                Point(ts=ts, values=numbers, epoch=at_epoch, step=at_step, checkpoint_path=path)
            )
        if at_epoch is not None and at_epoch != self._history.epoch:
            self._session.take_metric(Metrics(ts=ts, progress=self._history.progress_to(at_epoch)))

    def metric_at(
        self, ts: int, values: Mapping[str, Number], *, step: int | None = None, epoch: float | None = None
    ) -> None:
        """Take values that were measured at `ts` (nanoseconds since 1970), as `metric` takes those of now."""
        arguments = self._arguments
        numbers = arguments.numbers("values", values)
        at_epoch, at_step = arguments.count("epoch", epoch), arguments.count("step", step)
        if numbers:
            self._history.metrics.update(numbers)
            point = Point(ts=moment_ns(ts), values=numbers, epoch=at_epoch, step=at_step)
            self._session.take_metric(point)
        if at_epoch is not None and at_epoch != self._history.epoch:
            self._session.take_metric(Metrics(ts=moment_ns(ts), progress=self._history.progress_to(at_epoch)))

    def describe(self, params: Mapping[str, Any] | None = None, tags: Mapping[str, Any] | None = None) -> None:
        """Replace the parameters of the job's attempt, or its tags, or both."""
        self._session.take_metric(Metrics(ts=time.time_ns(), **description(None, params, tags, None)))

    @forgiving()
    def progress(
        self, epoch: int | None = None, total_epochs: int | None = None, percent: float | None = None
    ) -> None:
        """Say how far the training is; the percentage follows from the epochs where it is not said."""
        arguments = self._arguments
        epochs = arguments.count("total_epochs", total_epochs)
        if epochs is not None:
            self._history.total_epochs = epochs
        progress = self._history.progress_to(arguments.count("epoch", epoch), arguments.number("percent", percent))
        self._session.take_metric(Metrics(ts=time.time_ns(), progress=progress))

    @forgiving()
    def link_mlflow(self, mlflow_run_id: str) -> None:
        """Say that the training logs to MLflow itself, into this run: workers then link it, and mirror nothing."""
        run_id = self._arguments.mlflow_run_id(mlflow_run_id)
        if run_id is not None:
            self._session.take_metric(Metrics(ts=time.time_ns(), mlflow_run_id=run_id))

    @forgiving()
    def checkpoint(
        self,
        path: str | os.PathLike[str],
        kind: str = "last",
        *,
        epoch: int | None = None,
        step: int | None = None,
        metrics: Mapping[str, Number] | None = None,
        is_best: bool | None = None,
        upload: UploadChoice | None = None,
    ) -> None:
        """Record a checkpoint: a local file or folder (made absolute), or a URI such as s3://bucket/best.pt.

        Where a bucket is configured (docs/checkpoints.md), a local one is uploaded in the background as it is
        now, and reported when the store has it; `upload="none"` only records the path.
        """
        arguments = self._arguments
        described = checkpoint_at(
            path,
            kind=arguments.kind(kind),
            epoch=arguments.count("epoch", epoch),
            step=arguments.count("step", step),
            metrics=arguments.numbers("metrics", metrics),
            is_best=arguments.truth("is_best", is_best),
        )
        if described is None:
            arguments.leave_out_path(path)
        else:
            self._session.take_checkpoint(described, arguments.upload(upload))

    @forgiving()
    def capture_output(self) -> Capture:
        """Log the output of this process and its subprocesses too, until the run or the returned block ends.

        Everything that is written to stdout and stderr is logged, by C code and subprocesses as well, and shown as
        before (docs/capture.md). Under `trainwire run` it does nothing: the launcher logs the same lines.
        """
        if self._capture is None:
            try:
                # Here, because ctypes and subprocess cost 20 ms.
                from trainwire.ingest.output.capture import Capture, NoCapture  # noqa: PLC0415

                self._capture = NoCapture() if self._is_launched else Capture(self)
            except (ImportError, OSError) as exc:
                if not is_passing(exc):
                    raise
                self._session.warn_once("capture", f"output is shown, but not logged ({message_of(exc)})")
                return cast("Capture", nullcontext())
            renew_in_children(self._capture)
            open_runs.note_capture(self, self.source)
        return self._capture

    def hook(self, *libraries: str) -> None:
        """Log what this training logs to "tensorboard", "wandb" and "mlflow" to this run too; by default to all.

        The first two work on as before; MLflow without an address of its own keeps its runs in memory. Raises
        `ValueError` for another library.
        """
        self._log_caught = hook_into(self, libraries)

    @forgiving()
    def finish(
        self,
        status: str | None = None,
        *,
        exit_code: int | None = None,
        error: BaseException | str | None = None,
        final_metrics: Mapping[str, Number] | None = None,
        best_metrics: Mapping[str, Number] | None = None,
        best_epoch: int | None = None,
        timeout_s: float | None = None,
    ) -> Receipt:
        """Publish the completion and return, within `timeout_s` seconds, how far everything came.

        Returns as soon as the workers have committed everything; where everything is in Redis, after two seconds
        without news of the workers; where everything is in the spool, once Redis has been away for as long as it
        would wait, or for two seconds if it never answered. Uploads have all but the last seconds of `timeout_s`.
        Where that is not said, it is 10 s, and before these TRAINWIRE_CHECKPOINT_FINISH_S while checkpoints are
        being uploaded. The second call changes nothing and returns the same receipt.

        A strict run waits for the workers until `timeout_s` is over, and raises `NotStored` where not everything
        is committed then.
        """
        arguments = self._arguments
        said = {
            "final_metrics": arguments.numbers("final_metrics", final_metrics),
            "best_metrics": arguments.numbers("best_metrics", best_metrics),
            "best_epoch": arguments.count("best_epoch", best_epoch),
        }
        end = arguments.ending(status, exit_code, error)
        return self._checked(self._finish(end, said, arguments.timeout_s(timeout_s)))

    def renew_after_fork(self) -> None:
        """In a forked child, register the completion for the end of a multiprocessing process."""
        finish_with_multiprocessing(self, Run._finish_at_exit)

    def _note_misuse(self, call: str, text: str) -> None:
        """Warn once of a call whose arguments do not fit."""
        self._session.warn_once(call, text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        receipt = self._finish(ending(None, None, error), {}, None)
        if error is None:
            self._checked(receipt)

    def _checked(self, receipt: Receipt) -> Receipt:
        """Return the receipt; raise where a strict run is not stored, once, and only in its own process."""
        is_strict, self._is_strict = self._is_strict and self._session.is_makers, False
        if is_strict and receipt.stored != receipt.produced:
            raise NotStored(self.job_id, receipt)
        return receipt

    def _finish(self, end: Ending, said: Mapping[str, Any], timeout_s: float | None) -> Receipt:
        if self._is_launched:
            end = replace(end, exit_code=None)
        if self._log_caught is not None:
            log_caught, self._log_caught = self._log_caught, None
            log_caught()
        left_s = RESERVED_S  # where ctrl-C ends the wait for uploads
        try:
            if self._capture is not None:
                self._capture.stop()
            atexit.unregister(self._finish_at_exit)
            self._cancel_end_of_target()
            terminations.forget(self)
            open_runs.end(self)
            left_s = self._finish_uploads(timeout_s)
            if self._provenance_sent is not None and self._session.is_makers:
                self._provenance_sent.wait(min(PROVENANCE_WAIT_S, left_s / 4))
        finally:
            receipt = self._session.finish(
                lambda: completion(self._logged_once(end), self._history, self._started_at, self._place, said),
                left_s,
            )
        return receipt

    def _logged_once(self, end: Ending) -> Ending:
        """Return the ending without its traceback where that is logged, or will be, as output."""
        text, folder = end.traceback, self._traceback_folder
        if text is None:
            return end
        is_left = folder is not None and leave_to_launcher(folder, self.source, text)
        return replace(end, traceback=None) if is_left or self._session.printed.contain(text) else end

    def _finish_uploads(self, timeout_s: float | None) -> float:
        """Wait for uploads; return the seconds that are left for the messages."""
        if timeout_s is None:
            self._session.finish_uploads(self._uploads_patience_s)
            return DEFAULT_TIMEOUT_S
        started_s = monotonic_s()
        self._session.finish_uploads(max(timeout_s - RESERVED_S, timeout_s / 2))
        return round(max(0.0, timeout_s - (monotonic_s() - started_s)), 3)

    def _finish_at_exit(self) -> None:
        self._finish(ending_at_exit(), {}, None if self._session.is_makers else CHILD_FLUSH_S)
        exits.keep_interrupt()

    def _finish_at_end_of_target(self, error: BaseException | None) -> None:
        self._finish(ending(None, None, error), {}, None)

    def _finish_at_sigterm(self, timeout_s: float) -> None:
        self._finish(Ending("failed", 128 + SIGTERM, TERMINATED), {}, timeout_s)


def _checked_id(job_id: object) -> int:
    if isinstance(job_id, str) and not job_id.isdecimal():
        raise ValueError(f"job_id={shown(job_id)} is not a whole number: a name is written Run(name=...)")
    return whole_number("job_id", job_id, 1, MAX_ID)
