"""Runs a command as a training: logs its output, and sends its exit code as the completion."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

from trainwire.ingest.hooks.hooks import WITHOUT_WANDB, CatchOptions, Hooks
from trainwire.ingest.identity.announcements import announce, print_note
from trainwire.ingest.identity.default_names import default_name, script_of_command
from trainwire.ingest.identity.open_runs import JobNumber, open_runs
from trainwire.ingest.launcher.command import Signals
from trainwire.ingest.launcher.command_output import (
    occupy_standard_descriptors,
    open_terminal,
    run_alone,
    run_command,
)
from trainwire.ingest.launcher.stopping import DEFAULT_STOP_GRACE_S, STOP_MODES, stop_when_asked
from trainwire.ingest.process.launcher_folder import LauncherFolder
from trainwire.ingest.process.preemption import Preemption
from trainwire.ingest.process.ranks import Place
from trainwire.ingest.run import Run
from trainwire.ingest.servers.destinations import page_url_of, variables_of
from trainwire.ingest.settings.environment import whole_number
from trainwire.ingest.settings.trainer_settings import TrainerSettings
from trainwire.ingest.settings.variables import (
    ATTEMPT_VARIABLE,
    CAPTURED_VARIABLE,
    DISABLED_VARIABLE,
    JOB_ID_VARIABLE,
    JOB_NAME_VARIABLE,
    LAUNCHER_FOLDER_VARIABLE,
    PAGE_URL_VARIABLE,
    PARENT_VARIABLE,
    RESUME_VARIABLE,
)
from trainwire.ingest.strict import StrictError
from trainwire.schemas.tracing import TRACEPARENT_VARIABLE
from trainwire.schemas.wire.limits import MAX_TEXT_CHARS
from trainwire.schemas.wire.messages import ATTEMPT_UNKNOWN
from trainwire.schemas.wire.validation import MAX_ATTEMPT, MAX_ID

DEFAULT_FINISH_TIMEOUT_S: Final = 10.0
STRICT_FAILED: Final = 69
"""Exit code EX_UNAVAILABLE of sysexits.h.

With TRAINWIRE_STRICT=on: the run could not start, or not all its messages are stored.
"""


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """Options of a launch.

    If `job_id` is None, the job number is TRAINWIRE_JOB_ID, or a new number if this variable is not set.
    `resume_from_step`, `parent` and `fork_step` have the same meaning as for `Run`. `redis_url` replaces REDIS_URL
    and TRAINWIRE_URL; `data_dir` names the data folder of the `trainwire up` to send to, in place of any server.
    After the command has ended, the launcher waits at most `finish_timeout_s` seconds until its messages are
    stored. `catch` has the options for metrics.

    With `tty`, stdout and stderr of the command are one pseudo-terminal, and all lines are logged as stdout. With
    `fold_repeats`, equal lines in a row are logged once, followed by a line with the number of repetitions.

    When a user asks the training to stop, the command gets a SIGTERM. If one of its processes reads
    `run.should_stop`, it gets the SIGTERM only if it still runs `stop_grace_s` seconds later; with
    `on_stop="none"` it gets none.
    """

    job_id: int | None = None
    name: str | None = None
    attempt: int | None = None
    redis_url: str | None = None
    data_dir: Path | None = None
    finish_timeout_s: float = DEFAULT_FINISH_TIMEOUT_S
    tty: bool = False
    fold_repeats: bool = False
    catch: CatchOptions = field(default_factory=CatchOptions)
    resume_from_step: int | None = None
    parent: int | None = None
    fork_step: int | None = None
    on_stop: str = "sigterm"
    stop_grace_s: float = DEFAULT_STOP_GRACE_S

    def variables(self) -> dict[str, str]:
        """Return the job id and the attempt, if given, as environment variables for the command.

        Raises `ValueError` if one of them is not in its range.
        """
        variables = {}
        if self.job_id is not None:
            variables[JOB_ID_VARIABLE] = str(whole_number("job_id", self.job_id, 1, MAX_ID))
        if self.attempt is not None:
            variables[ATTEMPT_VARIABLE] = str(whole_number("attempt", self.attempt, 0, MAX_ATTEMPT))
        return variables


def launch(command: Sequence[str], options: LaunchOptions) -> int:
    """Run `command`, show and log its output, and return its exit code: 128+n when signal n ended it.

    Exit code 127 means that the command was not found, 126 that it cannot be executed. With TRAINWIRE_STRICT=on,
    69 means that the command was not started because Redis or the rank was unavailable, or that it succeeded and
    not all its messages are stored.

    Raises `ValueError` for an empty command or an invalid option. An invalid environment variable is ignored with
    a warning: without a valid address, messages stay in the spool. If the ranks of a launch cannot agree on a job
    number, or `redis_url` is invalid, the command and each `Run` in it run without trainwire.
    """
    if not command:
        raise ValueError("command=[] is empty: give a command, such as python train.py")
    if options.on_stop not in STOP_MODES:
        raise ValueError(f"on_stop={options.on_stop!r} is not known: write {' or '.join(STOP_MODES)}")
    variables = options.variables()
    occupy_standard_descriptors()
    environ = dict(os.environ)
    known = _settings_and_number(environ, options)
    if known is None:
        return _run_without_trainwire(command, {**environ, **variables}, options.catch)
    settings, number = known
    settings = settings.as_launcher()
    name = options.name
    if number.is_made:
        _check_no_resume(options.resume_from_step)
        name = (name or "").strip() or default_name(script_of_command(command), number.job_id)
    try:
        run = _begin_run(number, name, settings, options)
    except StrictError as exc:
        print_note(f"{exc}; the command was not started")
        return STRICT_FAILED
    run.record_provenance(settings.provenance, command)
    environ[JOB_NAME_VARIABLE] = (name or "").replace("\0", "")[: MAX_TEXT_CHARS["name"]]
    if options.resume_from_step is not None:
        environ[RESUME_VARIABLE] = str(options.resume_from_step)
    return _run_logged(command, run, settings, environ, options)


def _settings_and_number(
    environ: dict[str, str], options: LaunchOptions
) -> tuple[TrainerSettings, JobNumber] | None:
    """Return the settings and the job number; None if the command is to run without trainwire.

    Invalid variables are removed from `environ`, with a warning.
    """
    try:
        settings, errors = TrainerSettings.from_valid(environ)
        settings = settings.at(options.redis_url).at_stack(options.data_dir)
        number = _number(options.job_id, settings)
    except ValueError as exc:
        print_note(f"{exc}; the command runs without trainwire")
        return None
    if settings.is_disabled:
        return None
    for sentence in errors:
        print_note(sentence)
    return settings, number


def _run_without_trainwire(command: Sequence[str], environ: dict[str, str], catch: CatchOptions) -> int:
    without_wandb = WITHOUT_WANDB if catch.wandb == "replace" else {}
    return run_alone(command, {**environ, **without_wandb, DISABLED_VARIABLE: "on"})


def _begin_run(number: JobNumber, name: str | None, settings: TrainerSettings, options: LaunchOptions) -> Run:
    """Begin the launcher's run, and print the link to its page. Raises `StrictError` as `Run` does."""
    run = Run(
        number.job_id,
        name,
        attempt=options.attempt,
        resume_from_step=options.resume_from_step,
        parent=options.parent,
        fork_step=options.fork_step,
        settings=settings,
    )
    announce(settings, number, name, run.rank)
    return run


def _check_no_resume(resume_from_step: int | None) -> None:
    """Raise `ValueError` if a new job is to go on from a step."""
    if resume_from_step is not None:
        raise ValueError(
            f"resume_from_step={resume_from_step!r} needs the number of the job to resume: "
            f"trainwire run --job-id 42 --resume-from-step {resume_from_step}"
        )


def _run_logged(
    command: Sequence[str],
    run: Run,
    settings: TrainerSettings,
    environ: dict[str, str],
    options: LaunchOptions,
) -> int:
    """Run the command, log its output, finish `run`, and return the exit code."""
    with Signals() as signals, LauncherFolder() as folder:
        preemption = signals.preemption = Preemption(environ, folder.path)
        terminal = open_terminal() if options.tty else None
        environment = _environment(environ, run, settings, folder, has_terminal=terminal is not None)
        hooks = Hooks(
            run,
            partial(_run_of_rank, run, settings),
            folder.path,
            options.catch,
            print_note,
            settings=settings,
        )
        environment |= hooks.environment(environment)
        if options.on_stop == "sigterm":
            stop_when_asked(run, signals, folder, options.stop_grace_s)
        exit_code, error = run_command(
            command,
            run,
            environment,
            signals,
            terminal,
            fold_repeats=options.fold_repeats,
            on_lines=hooks.take_printed,
        )
        preempted = preemption.reason(exit_code)
        for text in folder.take_tracebacks():
            run.log_traceback(text)
        run.killed_sources = folder.killed_sources()
        summary = hooks.close(exit_code, lambda: signals.came_late)
        try:
            run.finish(
                None if preempted is None else "preempted",
                exit_code=exit_code,
                error=preempted or error,
                final_metrics=summary,
                timeout_s=options.finish_timeout_s,
            )
        except StrictError as exc:
            print_note(str(exc))
            return exit_code or STRICT_FAILED
    return exit_code


def _run_of_rank(run: Run, settings: TrainerSettings, rank: int) -> Run:
    """Return a `Run` that sends messages for another rank of the launcher's job."""
    _, (_, handle) = run.__reduce__()
    return Run._joined({**handle, "rank": rank, "token": None}, settings)  # noqa: SLF001 - as a pickle does


def _number(job_id: int | None, settings: TrainerSettings) -> JobNumber:
    """Return the job number: `job_id`, else TRAINWIRE_JOB_ID, else a new number.

    If this launcher was started by a process with an open run, the number of that run's job is not used, because
    the command has a completion of its own.

    Raises `UnknownLaunch` if the ranks cannot agree on a number.
    """
    parent = settings.parent
    if parent is not None and parent.job_id == settings.job_id and job_id in (None, parent.job_id):
        job_id, settings = None, replace(settings, job_id=None)
    if job_id is not None:
        return JobNumber(job_id)
    return open_runs.number_for(settings, Place(settings.rank, settings.world_size))


def _environment(
    environ: Mapping[str, str],
    run: Run,
    settings: TrainerSettings,
    folder: LauncherFolder,
    *,
    has_terminal: bool,
) -> dict[str, str]:
    """Return the environment variables for the command.

    They make a `Run` in it send to the launcher's job, and not capture output. `has_terminal` adds a default for
    TERM.
    """
    environment: dict[str, str | None] = {
        **({"TERM": "xterm"} if has_terminal else {}),  # unless the environment names another
        "PYTHONUNBUFFERED": "1",  # else Python buffers output to a pipe
        **environ,
        JOB_ID_VARIABLE: str(run.job_id),
        CAPTURED_VARIABLE: run.source,
        **variables_of(settings),
    }
    if run.origin.traceparent is not None:
        environment[TRACEPARENT_VARIABLE] = run.origin.traceparent
    environment.pop(PARENT_VARIABLE, None)  # the job's end is now the launcher's to report
    if (page_url := page_url_of(settings)) is not None:
        environment[PAGE_URL_VARIABLE] = page_url
    if folder.path is not None:
        environment[LAUNCHER_FOLDER_VARIABLE] = str(folder.path)
    if run.attempt != ATTEMPT_UNKNOWN:
        environment[ATTEMPT_VARIABLE] = str(run.attempt)
    return {name: value for name, value in environment.items() if value is not None}
