"""`Run`: the methods that a training script calls; none of them waits for the network or ends the training."""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401 - libraries import it later: too late when the interpreter ends
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Self, Unpack, cast

from trainwire.ingest.arguments import Arguments, description, grouped, line_texts, moment_ns
from trainwire.ingest.call_guard import forgiving, log_call, metric_call
from trainwire.ingest.completion import History
from trainwire.ingest.environment import whole_number
from trainwire.ingest.hooks.inside import announce_run, hook_into
from trainwire.ingest.identity.announcements import announce, one_line, print_note
from trainwire.ingest.identity.default_names import default_name, script_of_process
from trainwire.ingest.identity.lineage import checked_lineage
from trainwire.ingest.identity.open_runs import JobNumber, open_runs
from trainwire.ingest.line_splitting import split_lines
from trainwire.ingest.origin import Origin
from trainwire.ingest.outage import is_passing
from trainwire.ingest.pickling import Handle, address_of, register
from trainwire.ingest.process.daemon_pool import message_of
from trainwire.ingest.process.exits import at_end_of_target, exits, finish_with_multiprocessing, terminations
from trainwire.ingest.process.forks import renew_in_children
from trainwire.ingest.process.log_filter import quiet_ours
from trainwire.ingest.process.ranks import Place, checked_place
from trainwire.ingest.provenance.recording import OF_INTERPRETER, recorder
from trainwire.ingest.receipt import Receipt
from trainwire.ingest.run_end import RunEnd
from trainwire.ingest.run_options import RunOptions
from trainwire.ingest.sanitize import Number, level_name, plain_text, shown
from trainwire.ingest.sending.buffer import LogType
from trainwire.ingest.sending.session import Session
from trainwire.ingest.sending.size_limits import shortened
from trainwire.ingest.settings import TrainerSettings, checked_settings
from trainwire.ingest.uploads.checkpoint import checkpoint_at
from trainwire.schemas.limits import MAX_ALERT_TEXT_CHARS, MAX_ALERT_TITLE_CHARS
from trainwire.schemas.messages import MAX_WORLD_SIZE, Alert, Checkpoint, Metrics, Point, Progress
from trainwire.schemas.validation import MAX_ATTEMPT, MAX_ID

if TYPE_CHECKING:
    from trainwire.ingest.output.capture import Capture
    from trainwire.ingest.uploads.uploads import UploadChoice

quiet_ours()


class Run(RunEnd):
    """Reports the logs, metrics and checkpoints of one process of a job, and its completion.

    Without a `job_id`, the run belongs to the job in TRAINWIRE_JOB_ID, which `trainwire run` and the run of a
    parent process export. If the variable is not set, trainwire creates a new job with a new number; further
    runs of the same process are new jobs too. All ranks that torchrun, srun or mpirun have started get the same
    number; if this is impossible, the constructor raises `ValueError` with the remedy. A new job without a
    `name` is named after the script.

    No call waits for the network, or raises because a server is unreachable. The constructor raises
    `ValueError` for an invalid value (a job id of -1); in later calls an invalid argument is left out with one
    warning. Use the run as a context manager, or call `finish`.

    A copy of an object that contains a run contains the same run, and so does a pickle that is loaded in the
    same process. In another process (multiprocessing, joblib, a loaded checkpoint) a loaded pickle contains a
    run that reports to the same job and attempt, but neither begins nor completes it. It takes the password of
    Redis from the environment of that process.

    Messages go to Redis (`redis_url` or REDIS_URL), or over HTTPS to a gateway (`url` or TRAINWIRE_URL) with
    the token in TRAINWIRE_TOKEN (docs/https.md).

    With `strict` (or TRAINWIRE_STRICT=on) two calls raise a `StrictError`. The constructor raises `RedisAway`
    if Redis does not answer, and `RankTaken` if another live trainer has the same job, attempt and rank.
    `finish` raises `NotStored` if not everything is committed by its deadline (docs/strict.md).

    `project` and `group` set the tags of these names, by which jobs are filtered and grouped (docs/filters.md).

    `resume_from_step` begins an attempt that continues from a checkpoint of this step: later points of the
    attempts before are rolled back. `parent` and `fork_step` are the job and the step from which this job
    continues (docs/resume.md).

    `stall_after_s` is the longest pause between reports: after a longer one the job is shown as stalled
    (docs/liveness.md). `world_size` is the number of ranks that use trainwire; give it if the environment has
    none or another number. A job is complete only with the messages of all these ranks. `mlflow_run_id` is for
    a training that logs to MLflow itself: see `link_mlflow`.
    """

    def __init__(
        self,
        job_id: int | None = None,
        name: str | None = None,
        *,
        total_epochs: int | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        project: str | None = None,
        group: str | None = None,
        attempt: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        stall_after_s: float | None = None,
        mlflow_run_id: str | None = None,
        resume_from_step: int | None = None,
        parent: int | None = None,
        fork_step: int | None = None,
        strict: bool | None = None,
        redis_url: str | None = None,
        url: str | None = None,
        settings: TrainerSettings | None = None,
    ) -> None:
        settings = checked_settings(settings).at(redis_url, url)
        settings = settings.with_stall_after(stall_after_s).strictly(strict)
        place = checked_place(
            settings.rank if rank is None else whole_number("rank", rank, 0, MAX_ATTEMPT),
            settings.world_size
            if world_size is None
            else whole_number("world_size", world_size, 1, MAX_WORLD_SIZE),
        )
        self.rank: int | None = place.rank
        epochs = None if total_epochs is None else whole_number("total_epochs", total_epochs, 0, MAX_ID)
        about = description(name, params, grouped(tags, project, group), mlflow_run_id)
        number = open_runs.number_for(settings, place) if job_id is None else JobNumber(_checked_id(job_id))
        self.job_id: int = number.job_id
        about["name"], settings = settings.named(about["name"], self.job_id)
        lineage = checked_lineage(number, resume_from_step, parent, fork_step)
        joined = settings.parent if job_id is None and not number.is_made else None
        if joined is not None and joined.job_id != self.job_id:
            joined = None
        # Attempts of the environment are those of its own job.
        known = joined or (TrainerSettings() if number.is_made and settings.job_id is not None else settings)
        self.attempt = known.attempt if attempt is None else whole_number("attempt", attempt, 0, MAX_ATTEMPT)
        is_of_environment = joined is None and not number.is_made and settings.job_id in (None, self.job_id)
        exported = settings.resume_step if is_of_environment else None
        resume_step = exported if lineage.resume_step is None else lineage.resume_step
        self._begin(
            settings,
            History(epochs),
            place,
            None if joined is None else joined.started_at_ns,
            # The attempt of a script is its launcher's, which exports that it resumes.
            resume_step=exported if settings.is_captured and is_of_environment else resume_step,
        )
        if joined is not None:
            self._join(about)
            return
        if number.is_made and about["name"] is None:
            about["name"] = default_name(script_of_process(), self.job_id)
        if not settings.vitals.is_launcher:
            open_runs.begin(self, self.job_id, self.attempt, self._started_at)
        running = Progress(status="running", total_epochs=epochs, resume_step=resume_step)
        about |= {"parent_id": lineage.parent_id, "fork_step": lineage.fork_step}
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
        elif not settings.vitals.is_launcher:
            self._announce_renaming(settings, about["name"])

    def _announce_renaming(self, settings: TrainerSettings, name: str | None) -> None:
        """Print the name of a job whose launcher has announced another one, which finds no job any more."""
        before = settings.job_name
        if name is None or before is None or name == before or self.rank or settings.quiet:
            return
        print_note(f"job {self.job_id} is named {one_line(name)} from now on, and no longer {one_line(before)}")

    def _join(self, about: Mapping[str, Any]) -> None:
        """Join the run of the parent process: report to its job, and send only the params and tags of `about`."""
        described = {name: about[name] for name in ("params", "tags") if about[name]}
        if described:
            self._session.take_metric(Metrics(ts=time.time_ns(), **described))
        terminations.watch(self, self._finish_at_sigterm)

    def _begin(
        self,
        settings: TrainerSettings,
        history: History,
        place: Place,
        joined_run_of_ns: int | None = None,
        token: str | None = None,
        *,
        resume_step: int | None = None,
    ) -> None:
        """Start the session, and register the functions that finish the run when the process ends.

        If this run joins the run of another process, `joined_run_of_ns` is the start of the latter, in nanoseconds
        since 1970.
        """
        self._place = {
            "rank": place.rank,
            "world_size": place.world_size,
            "launcher": settings.vitals.is_launcher or None,
        }
        # The launcher logs the output of its own job, and knows the exit code of the whole command.
        self._is_launched = settings.is_captured and settings.job_id in (None, self.job_id)
        self._traceback_folder = settings.traceback_folder if self._is_launched else None
        self._is_strict = settings.strict
        self._capture = None
        self._provenance_sent = None
        self._log_caught = None
        self._history = history
        self._address = address_of(settings)
        self._started_at: int = joined_run_of_ns or time.time_ns()
        self._session = Session(
            self.job_id,
            self.attempt,
            self.rank,
            settings,
            self._history.note_checkpoint,
            began_ns=self._started_at,
            is_joined=joined_run_of_ns is not None,
            resume_step=resume_step,
        )
        self._arguments = Arguments(self._session.report_wrong)
        self._token = register(self, token)
        atexit.register(self._finish_at_exit)
        self._cancel_end_of_target = at_end_of_target(self._finish_at_end_of_target)
        renew_in_children(self)

    @classmethod
    def _joined(cls, handle: Handle, settings: TrainerSettings) -> Run:
        """Return a run restored from the pickled `handle`: it reports to the job of the other process's run."""
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
        """Create a run of the job in TRAINWIRE_JOB_ID, even if this process has had a run of that job before.

        Without the variable this is the same as `Run(...)`. `overrides` are further arguments of `Run`.
        """
        settings = settings or TrainerSettings.from_env()
        has_parent = settings.parent is not None and settings.parent.job_id == settings.job_id
        if job_id is None and not has_parent:
            job_id = settings.job_id
        return cls(job_id, name, settings=settings, **overrides)

    @property
    def origin(self) -> Origin:
        """Return the job, attempt, source and rank that this run's messages carry."""
        return self._session.outbox.origin

    @property
    def source(self) -> str:
        """Return the random name under which this process sends messages."""
        return self.origin.source

    @forgiving(log_call, 'run.log("text")')
    def log(
        self,
        text: object,
        *,
        log_type: LogType = "stdout",
        level: str | None = None,
        epoch: float | None = None,
        step: int | None = None,
    ) -> None:
        """Log a text as one line, or as several lines if it contains newlines.

        A mapping is reported as metrics, for users of other trackers: `run.log({"loss": 0.3}, step=3)` is the
        same as `run.metric(values={"loss": 0.3}, step=3)`.
        """
        if type(text) is not str and isinstance(text, Mapping):
            self.metric(values=text, epoch=epoch, step=step)
            return
        ts = time.time_ns()
        line = plain_text(text)
        lines = split_lines(line) if "\n" in line else (line,)
        self._session.take_lines(lines, self._arguments.log_type(log_type), ts, level_name(level))

    def log_lines(self, lines: Sequence[str], log_type: LogType, ts: int) -> None:
        """Log lines that were printed at `ts` (nanoseconds since 1970), with the log levels found in them.

        The call blocks while lines are printed faster than the disk can write them.
        """
        self._session.take_printed(line_texts(lines), self._arguments.log_type(log_type), moment_ns(ts))
        self._session.relieve()

    def log_traceback(self, text: str) -> None:
        """Log the lines of a traceback, unless all of them were already captured as output."""
        if not self._session.printed.contain(text):
            self.log_lines([f"TRACEBACK:\n{text}"], "stderr", time.time_ns())

    def record_provenance(self, items: frozenset[str], command: Sequence[str] | None = None) -> None:
        """Collect and send the provenance `items`, such as `git` and `packages`; ranks above 0 do nothing.

        `command` is the command that a launcher has started.
        """
        if items and not self.rank:

            def send(answer: dict[str, Any]) -> None:
                self._session.take_metric_late(Metrics(ts=time.time_ns(), provenance=answer))

            self._provenance_sent = recorder.record(items, send, command)

    def note_output(self) -> None:
        """Count output of the training as activity, so that the job is not shown as stalled.

        Output without a complete line counts too, such as a progress bar.
        """
        self._session.note_output()

    @forgiving(metric_call, "run.metric(loss=0.5, step=10)")
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
        """Report metrics measured now, as keyword arguments or in `values`; None values are left out.

        A value that is not a number is dropped and counted, with one warning. Never raises.
        """
        ts = time.time_ns()
        given = named if values is None else {**self._arguments.mapping("values", values), **named}
        self._take_values(ts, given, epoch, step, self._arguments.path("checkpoint_path", checkpoint_path))

    def metric_at(
        self, ts: int, values: Mapping[str, Number], *, step: float | None = None, epoch: float | None = None
    ) -> None:
        """Report metrics that were measured at `ts` (nanoseconds since 1970); like `metric`, never raises."""
        self._take_values(moment_ns(ts), values, epoch, step, None)

    def _take_values(self, ts: int, values: object, epoch: object, step: object, path: str | None) -> None:
        arguments = self._arguments
        numbers = arguments.numbers("values", values)
        at_epoch, at_step = arguments.count("epoch", epoch), arguments.count("step", step)
        if numbers:
            self._history.metrics.update(numbers)
            self._session.take_metric(
                Point(ts=ts, values=numbers, epoch=at_epoch, step=at_step, checkpoint_path=path)
            )
        if at_epoch is not None and at_epoch != self._history.epoch:
            self._session.take_metric(Metrics(ts=ts, progress=self._history.progress_to(at_epoch)))

    @forgiving(example='run.describe(params={"lr": 0.1})')
    def describe(self, params: Mapping[str, Any] | None = None, tags: Mapping[str, Any] | None = None) -> None:
        """Replace the parameters of the job's attempt, or its tags, or both."""
        try:
            described = description(None, params, tags, None)
        except ValueError as exc:
            self._session.warn_once("describe", f"{exc}; left out")
        else:
            self._session.take_metric(Metrics(ts=time.time_ns(), **described))

    @forgiving()
    def progress(
        self, epoch: int | None = None, total_epochs: int | None = None, percent: float | None = None
    ) -> None:
        """Report the progress of the training. If `percent` is None, it is computed from the epochs."""
        arguments = self._arguments
        epochs = arguments.count("total_epochs", total_epochs)
        if epochs is not None:
            self._history.total_epochs = epochs
        progress = self._history.progress_to(arguments.count("epoch", epoch), arguments.number("percent", percent))
        self._session.take_metric(Metrics(ts=time.time_ns(), progress=progress))

    @forgiving()
    def alert(self, title: object, text: object = "", level: str = "info") -> None:
        """Send a notification by the operators' rules (docs/alerts.md), and log it as a line.

        Args:
            title: one line, cut to 250 characters.
            text: the details, cut to 10,000 characters.
            level: `info`, `warning` or `error`.
        """
        ts, severity = time.time_ns(), self._arguments.alert_level(level)
        heading = shortened(" ".join(plain_text(title).split()) or "Alert", MAX_ALERT_TITLE_CHARS)
        details = shortened(plain_text(text).strip(), MAX_ALERT_TEXT_CHARS)
        alert = Alert(ts=ts, title=heading, text=details, level=severity)
        self._session.take_metric(Metrics(ts=ts, alerts=[alert]))
        line = f"ALERT: {heading}: {details}" if details else f"ALERT: {heading}"
        self._session.take_lines(split_lines(line), "stderr", ts, severity.upper())

    @forgiving()
    def link_mlflow(self, mlflow_run_id: str) -> None:
        """Report the id of a run in MLflow to which the training itself logs.

        The workers link the job to this run, and write nothing into it.
        """
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
        """Record a checkpoint: a local file or folder (as an absolute path), or a URI such as s3://bucket/best.pt.

        If a bucket is configured (docs/checkpoints.md), the current content of a local file or folder is
        uploaded in the background, and the checkpoint is reported after the upload. `upload="none"` only
        records the path. A local path at which there is nothing is left out with a warning.
        """
        arguments = self._arguments
        found = arguments.path("path", path)
        if found is None:
            return
        described = checkpoint_at(
            found,
            kind=arguments.kind(kind),
            epoch=arguments.count("epoch", epoch),
            step=arguments.count("step", step),
            metrics=arguments.numbers("metrics", metrics),
            is_best=arguments.truth("is_best", is_best),
        )
        self._session.take_checkpoint(described, arguments.upload(upload))

    def record_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Report the checkpoint in the message body `checkpoint` as it is, without an upload."""
        self._session.take_checkpoint(checkpoint, "none")

    @forgiving()
    def capture_output(self) -> Capture:
        """Log the output of this process and its subprocesses, until the run or the returned context manager ends.

        Everything written to stdout and stderr is logged, including output of C code and subprocesses, and is
        still shown (docs/capture.md). Under `trainwire run` this method does nothing, because the launcher logs
        the same lines.
        """
        if self._capture is None:
            try:
                # Here, because ctypes and subprocess take 20 ms to import.
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
        """Copy to this run what the training logs to `libraries`, by default to all supported ones.

        Supported libraries are "tensorboard", "wandb" and "mlflow"; others raise `ValueError`. TensorBoard and
        W&B still work as usual. MLflow without a configured address keeps its runs in memory.
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
        """Send the completion and return the receipt, within `timeout_s` seconds.

        The call returns as soon as the workers have committed everything. If everything is in Redis, it also
        returns after two seconds without a new acknowledgement. If everything is in the spool, it also returns
        once Redis has been unreachable for `timeout_s`, or for two seconds if Redis has never answered. Uploads
        may take all of `timeout_s` except the last seconds. By default, uploads may take
        TRAINWIRE_CHECKPOINT_FINISH_S, and the messages 10 s after that. A second call changes nothing and
        returns the same receipt.

        A strict run waits for the workers until `timeout_s` is over, and raises `NotStored` if not everything
        is committed then.
        """
        arguments = self._arguments
        results = {
            "final_metrics": arguments.numbers("final_metrics", final_metrics),
            "best_metrics": arguments.numbers("best_metrics", best_metrics),
            "best_epoch": arguments.count("best_epoch", best_epoch),
        }
        end = arguments.ending(status, exit_code, error)
        return self._checked(self._finish(end, results, arguments.timeout_s(timeout_s)))

    def _note_misuse(self, call: str, text: str) -> None:
        """Log `text`, a warning that a method was called with wrong arguments, once for each method."""
        self._session.warn_once(call, text)


def _checked_id(job_id: object) -> int:
    if isinstance(job_id, str):
        is_number = job_id.isdecimal()
        remedy = "write it without quotes" if is_number else "a name is written Run(name=...)"
        raise ValueError(f"job_id={shown(job_id)} is not a whole number: {remedy}")  # noqa: TRY004 - as for others
    return whole_number("job_id", job_id, 1, MAX_ID)
