"""Runs a command as a training: logs its output, and sends its exit code as the completion."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Final, TextIO

from trainwire.ingest.destinations import page_url_of, variables_of
from trainwire.ingest.hooks.hooks import WITHOUT_WANDB, CatchOptions, Hooks
from trainwire.ingest.identity.announcements import announce, print_note
from trainwire.ingest.identity.default_names import default_name, script_of_command
from trainwire.ingest.identity.open_runs import JobNumber, open_runs
from trainwire.ingest.launcher.command import MemoryKills, Signals, error_message, exit_code_of
from trainwire.ingest.launcher.keeper import Keeper
from trainwire.ingest.launcher.stopping import DEFAULT_STOP_GRACE_S, STOP_MODES, stop_when_asked
from trainwire.ingest.output.pipes import OutputPipe, await_ends, descriptor_of
from trainwire.ingest.output.pseudo_terminal import Terminal
from trainwire.ingest.process.ranks import Place
from trainwire.ingest.process.tracebacks import TracebackFolder
from trainwire.ingest.run import Run
from trainwire.ingest.sending.buffer import LogType
from trainwire.ingest.settings.environment import whole_number
from trainwire.ingest.settings.trainer_settings import TrainerSettings
from trainwire.ingest.settings.variables import (
    ATTEMPT_VARIABLE,
    CAPTURED_VARIABLE,
    DISABLED_VARIABLE,
    JOB_ID_VARIABLE,
    JOB_NAME_VARIABLE,
    PAGE_URL_VARIABLE,
    PARENT_VARIABLE,
    RESUME_VARIABLE,
    TRACEBACKS_VARIABLE,
)
from trainwire.ingest.strict import StrictError
from trainwire.schemas.wire.limits import MAX_TEXT_CHARS
from trainwire.schemas.wire.messages import ATTEMPT_UNKNOWN
from trainwire.schemas.wire.validation import MAX_ATTEMPT, MAX_ID

DEFAULT_FINISH_TIMEOUT_S: Final = 10.0
GRANDCHILD_GRACE_S: Final = 2.0
"""Seconds for which output is read after the command has ended, if a process that it started has the pipe open."""
STOPPED_GRACE_S: Final = 60.0
"""Seconds for which output is read after a user has asked the job to stop and the command has ended.

It is longer, because processes that a shell script has started may still save checkpoints.
"""
_BACKGROUND: Final = "the command has ended; processes that it started still run, and their output is not logged"
_SHOWN_WHILE_STOPPED: Final = "bytes of output came while the launcher was stopped: shown, and not logged"
_LAST_STANDARD: Final = 2
NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126
STRICT_FAILED: Final = 69
"""Exit code EX_UNAVAILABLE of sysexits.h.

With TRAINWIRE_STRICT=on: the run could not start, or not all its messages are stored.
"""


def launch(
    command: Sequence[str],
    *,
    job_id: int | None = None,
    name: str | None = None,
    attempt: int | None = None,
    redis_url: str | None = None,
    data_dir: Path | None = None,
    finish_timeout_s: float = DEFAULT_FINISH_TIMEOUT_S,
    tty: bool = False,
    fold_repeats: bool = False,
    catch: CatchOptions | None = None,
    resume_from_step: int | None = None,
    parent: int | None = None,
    fork_step: int | None = None,
    on_stop: str = "sigterm",
    stop_grace_s: float = DEFAULT_STOP_GRACE_S,
) -> int:
    """Run `command`, show and log its output, and return its exit code: 128+n when signal n ended it.

    If `job_id` is None, the job number is TRAINWIRE_JOB_ID, or a new number if this variable is not set.

    With `tty`, stdout and stderr of the command are one pseudo-terminal, and all lines are logged as stdout. With
    `fold_repeats`, equal lines in a row are logged once, followed by a line with the number of repetitions.

    `resume_from_step`, `parent` and `fork_step` have the same meaning as for `Run`.

    When a user asks the training to stop, the command gets a SIGTERM. If one of its processes reads
    `run.should_stop`, it gets the SIGTERM only if it still runs `stop_grace_s` seconds later; with
    `on_stop="none"` it gets none.

    Exit code 127 means that the command was not found, 126 that it cannot be executed. With TRAINWIRE_STRICT=on,
    69 means that the command was not started because Redis or the rank was unavailable, or that it succeeded and
    not all its messages are stored.

    Raises `ValueError` for an invalid job id or attempt. An invalid environment variable is ignored with a
    warning: without a valid address, messages stay in the spool. If the ranks of a launch cannot agree on a job
    number, or `redis_url` is invalid, the command and each `Run` in it run without trainwire.
    """
    if not command:
        raise ValueError("command=[] is empty: give a command, such as python train.py")
    if on_stop not in STOP_MODES:
        raise ValueError(f"on_stop={on_stop!r} is not known: write {' or '.join(STOP_MODES)}")
    variables = _variables(job_id, attempt)
    _occupy_standard_descriptors()
    catch = catch or CatchOptions()
    environ = dict(os.environ)
    try:
        settings, errors = TrainerSettings.from_valid(environ)
        settings = settings.at(redis_url).at_stack(data_dir)
        number = _number(job_id, settings)
    except ValueError as exc:
        print_note(f"{exc}; the command runs without trainwire")
        settings = TrainerSettings(is_disabled=True)
    if settings.is_disabled:
        if catch.wandb == "replace":
            variables |= WITHOUT_WANDB
        return _run_alone(command, {**environ, **variables, DISABLED_VARIABLE: "on"})
    for sentence in errors:
        print_note(sentence)
    if number.is_made:
        _check_no_resume(resume_from_step)
        name = (name or "").strip() or default_name(script_of_command(command), number.job_id)
    environ[JOB_NAME_VARIABLE] = (name or "").replace("\0", "")[: MAX_TEXT_CHARS["name"]]
    settings = settings.as_launcher()
    try:
        run = Run(
            number.job_id,
            name,
            attempt=attempt,
            resume_from_step=resume_from_step,
            parent=parent,
            fork_step=fork_step,
            settings=settings,
        )
    except StrictError as exc:
        print_note(f"{exc}; the command was not started")
        return STRICT_FAILED
    announce(settings, number, name, run.rank)
    run.record_provenance(settings.provenance, command)
    if resume_from_step is not None:
        environ[RESUME_VARIABLE] = str(resume_from_step)
    return _run_logged(
        command,
        run,
        settings,
        environ,
        catch,
        finish_timeout_s=finish_timeout_s,
        tty=tty,
        fold_repeats=fold_repeats,
        stop_grace_s=stop_grace_s if on_stop == "sigterm" else None,
    )


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
    catch: CatchOptions,
    *,
    finish_timeout_s: float,
    tty: bool,
    fold_repeats: bool,
    stop_grace_s: float | None,
) -> int:
    """Run the command, log its output, finish `run`, and return the exit code.

    If `stop_grace_s` is None, the command gets no SIGTERM when a user asks the job to stop.
    """
    with Signals() as signals, TracebackFolder() as tracebacks:
        terminal = _terminal() if tty else None
        environment = _environment(environ, run, settings, tracebacks, has_terminal=terminal is not None)
        hooks = Hooks(
            run,
            partial(_run_of_rank, run, settings),
            tracebacks.path,
            catch,
            print_note,
            settings=settings,
        )
        environment |= hooks.environment(environment)
        if stop_grace_s is not None:
            stop_when_asked(run, signals, tracebacks, stop_grace_s)
        exit_code, error = _run_command(
            command, run, environment, signals, terminal, fold_repeats=fold_repeats, on_lines=hooks.take_printed
        )
        for text in tracebacks.take():
            run.log_traceback(text)
        summary = hooks.close(exit_code, lambda: signals.came_late)
        try:
            run.finish(
                exit_code=exit_code,
                error=error,
                final_metrics=summary,
                timeout_s=finish_timeout_s,
            )
        except StrictError as exc:
            print_note(str(exc))
            return exit_code or STRICT_FAILED
    return exit_code


def _run_of_rank(run: Run, settings: TrainerSettings, rank: int) -> Run:
    """Return a `Run` that sends messages for another rank of the launcher's job."""
    _, (_, handle) = run.__reduce__()
    return Run._joined({**handle, "rank": rank, "token": None}, settings)  # noqa: SLF001 - as a pickle does


def _variables(job_id: int | None, attempt: int | None) -> dict[str, str]:
    """Validate the job id and the attempt; return them as environment variables for the command."""
    variables = {}
    if job_id is not None:
        variables[JOB_ID_VARIABLE] = str(whole_number("job_id", job_id, 1, MAX_ID))
    if attempt is not None:
        variables[ATTEMPT_VARIABLE] = str(whole_number("attempt", attempt, 0, MAX_ATTEMPT))
    return variables


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


def _run_alone(command: Sequence[str], environment: dict[str, str]) -> int:
    with Signals() as signals:
        try:
            process = subprocess.Popen(command, env=environment)  # noqa: S603 - as in _run_command
        except OSError as exc:
            return _cannot_run(command[0], exc)[0]
        signals.forward_to(process)
        return exit_code_of(process.wait())


def _run_command(
    command: Sequence[str],
    run: Run,
    environment: dict[str, str],
    signals: Signals,
    terminal: Terminal | None,
    *,
    fold_repeats: bool,
    on_lines: Callable[[Sequence[str], int], None],
) -> tuple[int, str | None]:
    memory_kills = MemoryKills()
    writer = subprocess.PIPE if terminal is None else terminal.writer
    try:
        process = subprocess.Popen(  # noqa: S603 - the command of the user
            command, stdout=writer, stderr=writer, env=environment, bufsize=0
        )
    except OSError as exc:
        exit_code, sentence = _cannot_run(command[0], exc)
        run.log(f"trainwire: {sentence}", log_type="stderr")
        return exit_code, sentence
    finally:
        if terminal is not None:
            terminal.close_writer()
    signals.forward_to(process, terminal)
    opened: list[tuple[IO[bytes] | None, TextIO | None, LogType]] = (
        [(process.stdout, sys.stdout, "stdout"), (process.stderr, sys.stderr, "stderr")]
        if terminal is None
        else [(terminal.output, sys.stdout, "stdout")]
    )
    keeper = _keeper(process.pid, [(read, shown) for read, shown, _ in opened if read is not None])
    outputs = [
        OutputPipe(read, shown, log_type, run, fold_repeats=fold_repeats, on_lines=on_lines)
        for read, shown, log_type in opened
    ]
    return_code = process.wait()
    if not await_ends(outputs, _grace_s(run)):
        run.log(f"trainwire: {_BACKGROUND}", log_type="stderr", level="WARNING")
    if keeper is not None and (shown_bytes := keeper.close()):
        run.log(f"trainwire: {shown_bytes:,} {_SHOWN_WHILE_STOPPED}", log_type="stderr", level="WARNING")
    return exit_code_of(return_code), error_message(return_code, memory_kills.cause() or outputs[-1].last_line)


def _grace_s(run: Run) -> float:
    return STOPPED_GRACE_S if run._is_terminated else GRANDCHILD_GRACE_S  # noqa: SLF001 - see stopping.py


def _keeper(command: int, outputs: Sequence[tuple[IO[bytes], TextIO | None]]) -> Keeper | None:
    try:
        return Keeper(command, [(read.fileno(), descriptor_of(shown)) for read, shown in outputs])
    except OSError as exc:
        print_note(
            f"the process that keeps the output open could not be started ({exc}): do not kill the launcher"
        )
        return None


def _terminal() -> Terminal | None:
    try:
        return Terminal()
    except OSError as exc:
        print_note(f"no terminal could be opened ({exc}); the command writes to pipes")
        return None


def _environment(
    environ: Mapping[str, str],
    run: Run,
    settings: TrainerSettings,
    tracebacks: TracebackFolder,
    *,
    has_terminal: bool,
) -> dict[str, str]:
    """Return the environment variables for the command.

    They make a `Run` in it send to the launcher's job, and not capture output.
    """
    environment: dict[str, str | None] = {
        **({"TERM": "xterm"} if has_terminal else {}),  # unless the environment names another
        "PYTHONUNBUFFERED": "1",  # else Python buffers output to a pipe
        **environ,
        JOB_ID_VARIABLE: str(run.job_id),
        CAPTURED_VARIABLE: run.source,
        **variables_of(settings),
    }
    environment.pop(PARENT_VARIABLE, None)  # the job's end is now the launcher's to report
    if (page_url := page_url_of(settings)) is not None:
        environment[PAGE_URL_VARIABLE] = page_url
    if tracebacks.path is not None:
        environment[TRACEBACKS_VARIABLE] = str(tracebacks.path)
    if run.attempt != ATTEMPT_UNKNOWN:
        environment[ATTEMPT_VARIABLE] = str(run.attempt)
    return {name: value for name, value in environment.items() if value is not None}


def _cannot_run(program: str, error: OSError) -> tuple[int, str]:
    """Return the exit code that a shell would return for a command that cannot be run, and an error message."""
    exit_code = NOT_EXECUTABLE
    if not isinstance(error, FileNotFoundError):
        sentence = f"cannot run {program!r}: {error.strerror or error}"
    elif "/" in program and Path(program).exists():
        sentence = f"cannot run {program!r}: the interpreter that its first line names is not found"
    else:
        exit_code = NOT_FOUND
        sentence = f"cannot run {program!r}: command not found; check its spelling and PATH"
    print_note(sentence)
    return exit_code, sentence


def _occupy_standard_descriptors() -> None:
    """Open /dev/null for each closed standard stream, so that no file opened later gets its descriptor number.

    The command does not inherit these descriptors: its streams stay closed.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _LAST_STANDARD:
        pass
    os.close(descriptor)
