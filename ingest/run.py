"""`Run`: the methods that a training script calls; only `finish` and strict constructors wait for the network."""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401 - libraries import it later: too late when the interpreter ends
import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Self, Unpack, cast

from trainwire.ingest.arguments import Arguments, description, grouped
from trainwire.ingest.call_guard import forgiving
from trainwire.ingest.completion import History
from trainwire.ingest.hooks.inside import announce_run, hook_into
from trainwire.ingest.identity.announcements import announce
from trainwire.ingest.identity.default_names import default_name, named, script_of_process
from trainwire.ingest.identity.open_runs import JobNumber, open_runs
from trainwire.ingest.identity.origin import Origin
from trainwire.ingest.pickling import Handle, address_of, register
from trainwire.ingest.process.daemon_pool import message_of
from trainwire.ingest.process.exits import at_end_of_target, exits, finish_with_multiprocessing, terminations
from trainwire.ingest.process.forks import renew_in_children
from trainwire.ingest.process.launcher_folder import note_begin
from trainwire.ingest.process.log_filter import quiet_ours
from trainwire.ingest.process.ranks import Place
from trainwire.ingest.provenance.recording import OF_INTERPRETER
from trainwire.ingest.receipt import Receipt
from trainwire.ingest.run_end import RunEnd
from trainwire.ingest.run_reports import RunReports
from trainwire.ingest.run_start import RunOptions, checked_id, checked_lineage, given_place, start_of
from trainwire.ingest.sanitize import Number
from trainwire.ingest.sending.session import Session
from trainwire.ingest.servers.outage import is_passing
from trainwire.ingest.settings.environment import whole_number
from trainwire.ingest.settings.trainer_settings import TrainerSettings, checked_settings
from trainwire.schemas.tracing import checked_traceparent
from trainwire.schemas.wire.messages import Metrics, Progress
from trainwire.schemas.wire.validation import MAX_ID

if TYPE_CHECKING:
    from trainwire.ingest.output.capture import Capture
    from trainwire.ingest.tracing import RunTrace

quiet_ours()


class Run(RunReports, RunEnd):
    """Reports the logs, metrics and checkpoints of one process of a job, and its completion.

    Without a `job_id`, the run belongs to the job in TRAINWIRE_JOB_ID, which `trainwire run` and the run of a
    parent process export. If the variable is not set, trainwire creates a new job with a new number; further
    runs of the same process are new jobs too. All ranks that torchrun, srun or mpirun have started get the same
    number; if this is impossible, the constructor raises `ValueError` with the remedy. A new job without a
    `name` is named after the script.

    Only `finish`, and the constructor with `strict`, wait for the network, both with a time limit; without
    `strict` no call raises because a server is unreachable. With TRAINWIRE_SPOOL_FULL=block, calls wait while the
    spool and the memory are full. The constructor raises `ValueError` for an invalid value (a job id of -1); in
    later calls an invalid argument is left out with one warning. Use the run as a context manager, or call
    `finish`.

    A copy of an object that contains a run contains the same run, and so does a pickle that is loaded in the
    same process. In another process (multiprocessing, joblib, a loaded checkpoint) a loaded pickle contains a
    run that reports to the same job and attempt, but neither begins nor completes it. It takes the password of
    Redis from the environment of that process.

    Messages go to Redis (`redis_url` or REDIS_URL), or over HTTPS to a gateway (`url` or TRAINWIRE_URL) with
    the token in TRAINWIRE_TOKEN (docs/https.md).

    With `strict` (or TRAINWIRE_STRICT=on) two calls raise a `StrictError`. The constructor raises `RedisAway`
    if Redis does not answer, and `RankTaken` if another live trainer has the same job, attempt and rank.
    `finish`, or the end of the `with` block, raises `NotStored` if not everything is committed by its deadline
    (docs/strict.md).

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
        place = given_place(settings, rank, world_size)
        self.rank: int | None = place.rank
        epochs = None if total_epochs is None else whole_number("total_epochs", total_epochs, 0, MAX_ID)
        about = description(name, params, grouped(tags, project, group), mlflow_run_id)
        number = open_runs.number_for(settings, place) if job_id is None else JobNumber(checked_id(job_id))
        self.job_id: int = number.job_id
        about["name"], settings = named(settings, about["name"], self.job_id)
        lineage = checked_lineage(number, resume_from_step, parent, fork_step)
        start = start_of(settings, number, attempt, lineage.resume_step, is_job_given=job_id is not None)
        self.attempt = start.attempt
        joined = start.joined
        self._begin(
            settings,
            History(epochs),
            place,
            None if joined is None else joined.started_at_ns,
            resume_step=start.own_resume_step,
            traceparent=None if joined is None else settings.tracing.parent_run,
        )
        if joined is not None:
            self._join(about)
            return
        if number.is_made and about["name"] is None:
            about["name"] = default_name(script_of_process(), self.job_id)
        running = Progress(status="running", total_epochs=epochs, resume_step=start.resume_step)
        self._open(settings, running, {**about, "parent_id": lineage.parent_id, "fork_step": lineage.fork_step})
        self._announce(settings, number, about["name"])

    def _announce(self, settings: TrainerSettings, number: JobNumber, name: str | None) -> None:
        """Print the address of the job's page, unless the launcher has printed it under the same name."""
        is_announced = self._is_launched and not number.is_made and name in (None, settings.job_name)
        if not settings.vitals.is_launcher and not is_announced:
            announce(settings, number, name, self.rank)

    def _open(self, settings: TrainerSettings, running: Progress, about: Mapping[str, Any]) -> None:
        """Report the start of the attempt with the header fields `about`, and prepare the end of the process."""
        is_launcher = settings.vitals.is_launcher
        if not is_launcher:
            traceparent = self.origin.traceparent
            open_runs.begin(self, self.job_id, self.attempt, self._started_at, traceparent)
            if self._launcher_folder is not None:
                note_begin(self._launcher_folder, self.source)
        beat_s = settings.vitals.interval_s
        self._session.take_metric(
            Metrics(ts=self._started_at, progress=running, heartbeat_s=beat_s, **about, **self._place)
        )
        announce_run()
        exits.watch()
        terminations.watch(self, self._finish_at_sigterm)
        if not is_launcher:
            wanted = settings.provenance
            self.record_provenance(wanted.intersection(OF_INTERPRETER) if self._is_launched else wanted)

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
        traceparent: str | None = None,
    ) -> None:
        """Start the session, and register the functions that finish the run when the process ends.

        If this run joins the run of another process, `joined_run_of_ns` is the start of the latter, in nanoseconds
        since 1970, and `traceparent` the span of the latter. `token` is that of a restored pickle. `resume_step`
        begins a new attempt at this step.
        """
        self._place = {
            "rank": place.rank,
            "world_size": place.world_size,
            "launcher": settings.vitals.is_launcher or None,
        }
        # The launcher logs the output of its own job, and knows the exit code of the whole command.
        self._is_launched = settings.is_captured and settings.job_id in (None, self.job_id)
        self._launcher_folder = settings.launcher_folder if self._is_launched else None
        self._is_strict = settings.strict
        self._capture = None
        self._provenance_sent = None
        self._log_caught = None
        self._history = history
        self._address = address_of(settings)
        self._started_at: int = joined_run_of_ns or time.time_ns()
        self._trace = self._begin_trace(settings) if joined_run_of_ns is None else None
        if self._trace is not None:
            traceparent = self._trace.traceparent
        self._session = Session(
            self.job_id,
            self.attempt,
            self.rank,
            settings,
            self._history.note_checkpoint,
            began_ns=self._started_at,
            is_joined=joined_run_of_ns is not None,
            resume_step=resume_step,
            traceparent=traceparent,
        )
        self._arguments = Arguments(self._session.report_wrong)
        self._token = register(self, token)
        atexit.register(self._finish_at_exit)
        self._cancel_end_of_target = at_end_of_target(self._finish_at_end_of_target)
        renew_in_children(self)

    def _begin_trace(self, settings: TrainerSettings) -> RunTrace | None:
        """Begin the span of the run; return None if the run is not traced."""
        if not settings.tracing.is_on or settings.is_disabled:
            return None
        from trainwire.ingest.tracing import begin_trace  # noqa: PLC0415 - of no use without a collector

        return begin_trace(settings.tracing, self.job_id, self._place)

    @classmethod
    def _joined(cls, handle: Handle, settings: TrainerSettings) -> Run:
        """Return a run restored from the pickled `handle`: it reports to the job of the other process's run."""
        run = cls.__new__(cls)
        run.job_id, run.attempt, run.rank = handle["job_id"], handle["attempt"], handle["rank"]
        run._begin(  # noqa: SLF001
            settings,
            History(),
            Place(run.rank),
            handle["started_at"],
            handle["token"],
            traceparent=checked_traceparent(handle.get("traceparent")),  # pickles of older versions have none
        )
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

        With a `job_id`, without the variable, or if the open run of a parent process has set it, this is the same
        as `Run(...)`. If `settings` is None, they are read from the environment. `overrides` are further arguments
        of `Run`.
        """
        settings = settings or TrainerSettings.from_env()
        has_parent = settings.parent is not None and settings.parent.job_id == settings.job_id
        if job_id is None and not has_parent:
            job_id = settings.job_id
        return cls(job_id, name, settings=settings, **overrides)

    @property
    def origin(self) -> Origin:
        """The job, attempt, source and rank that this run's messages carry."""
        return self._session.outbox.origin

    @property
    def source(self) -> str:
        """The random name under which this process sends messages."""
        return self.origin.source

    @forgiving()
    def capture_output(self) -> Capture:
        """Log the output of this process and its subprocesses, until the run or the returned context manager ends.

        Everything written to stdout and stderr is logged, including output of C code and subprocesses, and is
        still shown (docs/capture.md). Under `trainwire run` this method does nothing, because the launcher logs
        the same lines. If the system lacks the resources, the output is shown and not logged, with a warning.
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
        """Copy the values that the training logs with `libraries` (default: all supported ones) to this run.

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

        `status` is `completed`, `failed`, or `preempted` if the scheduler ends the training. An `exit_code` other
        than 0 means `failed`, and so does an `error` (an exception or a text) without a status. `final_metrics`,
        `best_metrics` and `best_epoch` replace the values that the run has noted from its metrics and checkpoints.

        The call returns as soon as the workers have committed everything. If everything is in Redis, it also
        returns after two seconds (TRAINWIRE_SETTLE_S) without a new acknowledgement. If everything is in the
        spool, it also returns once Redis has been unreachable for `timeout_s`, for two seconds if Redis has never
        answered, or at once if no server is configured or running. Uploads may take all of `timeout_s` except the
        last seconds. By default, uploads may take TRAINWIRE_CHECKPOINT_FINISH_S, and the messages 10 s after that.
        With captured output, reading the printed lines may take up to 10 s more. A second call changes nothing and
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
