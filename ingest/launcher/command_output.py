"""Runs the command of `trainwire run`, and shows and logs its output."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Final, NamedTuple, TextIO

from trainwire.ingest.identity.announcements import print_note
from trainwire.ingest.launcher.command import MemoryKills, Signals, error_message, exit_code_of
from trainwire.ingest.launcher.keeper import Keeper
from trainwire.ingest.output.pipes import OutputPipe, await_ends, descriptor_of
from trainwire.ingest.output.pseudo_terminal import Terminal
from trainwire.ingest.run import Run
from trainwire.schemas.wire.messages import LogType

GRANDCHILD_GRACE_S: Final = 2.0
"""Seconds for which output is read after the command has ended, if a process that it started has the pipe open."""
STOPPED_GRACE_S: Final = 60.0
"""Seconds for which output is read after a user has asked the job to stop and the command has ended.

It is longer, because processes that a shell script has started may still save checkpoints.
"""
_BACKGROUND: Final = "the command has ended; processes that it started still run, and their output is not logged"
_NOT_LOGGED: Final = "the output of the command is shown, and not logged"
_SHOWN_WHILE_STOPPED: Final = "bytes of output came while the launcher was stopped: shown, and not logged"
_LAST_STANDARD: Final = 2
NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126


def run_alone(command: Sequence[str], environment: dict[str, str]) -> int:
    """Run the command without logging its output, and return its exit code.

    The exit code is 127 if the command is not found, 126 if it cannot be executed, and 128+n after signal n.
    """
    with Signals() as signals:
        try:
            process = subprocess.Popen(command, env=environment)  # noqa: S603 - as in run_command
        except OSError as exc:
            return _cannot_run(command[0], exc)[0]
        signals.forward_to(process)
        return exit_code_of(process.wait())


def run_command(
    command: Sequence[str],
    run: Run,
    environment: dict[str, str],
    signals: Signals,
    terminal: Terminal | None,
    *,
    fold_repeats: bool,
    on_lines: Callable[[Sequence[str], int], None],
) -> tuple[int, str | None]:
    """Run the command and log its output; return its exit code, and an error message if it failed.

    `terminal` is the command's terminal; if it is None, stdout and stderr are pipes. `fold_repeats` logs equal
    lines in a row once. `on_lines` is called with the lines and the time in nanoseconds since 1970. The output of
    processes that outlive the command is read for `GRANDCHILD_GRACE_S` seconds at most, after a request to stop
    for `STOPPED_GRACE_S`.
    """
    memory_kills = MemoryKills()
    opened, outputs = _start_reading(
        terminal,
        lambda each: OutputPipe(
            each.reader, each.shown, each.log_type, run, fold_repeats=fold_repeats, on_lines=on_lines
        ),
    )
    if not opened:
        run.log(f"trainwire: {_NOT_LOGGED}", log_type="stderr", level="WARNING")
    stdout, stderr = (opened[0].writer, opened[-1].writer) if opened else (None, None)
    try:
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment)  # noqa: S603 - the user's
        signals.forward_to(process, terminal)
        keeper = _keeper(process.pid, opened) if opened else None
    except OSError as exc:
        exit_code, sentence = _cannot_run(command[0], exc)
        run.log(f"trainwire: {sentence}", log_type="stderr")
        return exit_code, sentence
    finally:
        for each in opened:  # not before the keeper has the readers, which are closed at the end of the output
            os.close(each.writer)
    return_code = process.wait()
    if not await_ends(outputs, _grace_s(run)):
        run.log(f"trainwire: {_BACKGROUND}", log_type="stderr", level="WARNING")
    if keeper is not None and (shown_bytes := keeper.close()):
        run.log(f"trainwire: {shown_bytes:,} {_SHOWN_WHILE_STOPPED}", log_type="stderr", level="WARNING")
    last_line = outputs[-1].last_line if outputs else None
    return exit_code_of(return_code), error_message(return_code, memory_kills.cause() or last_line)


class _Opened(NamedTuple):
    """The two ends of the pipe or pseudo-terminal for one output of the command."""

    reader: IO[bytes]
    writer: int
    shown: TextIO | None
    log_type: LogType


def _start_reading(
    terminal: Terminal | None, read: Callable[[_Opened], OutputPipe]
) -> tuple[list[_Opened], list[OutputPipe]]:
    """Open the outputs of the command, and call `read` for each.

    If the system refuses a descriptor or a thread, print a note and return two empty lists: the command then has
    the streams of the launcher. This is done before the command is started, which would block on an unread pipe.
    """
    opened: list[_Opened] = []
    outputs: list[OutputPipe] = []
    try:
        if terminal is not None:
            opened.append(_Opened(terminal.output, terminal.writer, sys.stdout, "stdout"))
        else:
            opened.append(_opened_pipe(sys.stdout, "stdout"))
            opened.append(_opened_pipe(sys.stderr, "stderr"))
        for each in opened:
            outputs = [*outputs, read(each)]
    except (OSError, RuntimeError) as exc:
        print_note(f"{_NOT_LOGGED}: {exc}")
        for each in opened:
            os.close(each.writer)
        for each in opened[len(outputs) :]:
            each.reader.close()
        return [], []
    return opened, outputs


def _opened_pipe(shown: TextIO | None, log_type: LogType) -> _Opened:
    reader, writer = os.pipe()
    return _Opened(open(reader, "rb", buffering=0), writer, shown, log_type)


def _grace_s(run: Run) -> float:
    return STOPPED_GRACE_S if run._is_terminated else GRANDCHILD_GRACE_S  # noqa: SLF001 - see stopping.py


def _keeper(command: int, opened: Sequence[_Opened]) -> Keeper | None:
    try:
        return Keeper(command, [(each.reader.fileno(), descriptor_of(each.shown)) for each in opened])
    except OSError as exc:
        print_note(
            f"the process that keeps the output open could not be started ({exc}): do not kill the launcher"
        )
        return None


def open_terminal() -> Terminal | None:
    """Open a pseudo-terminal for the command; print a note and return None if the system refuses one."""
    try:
        return Terminal()
    except OSError as exc:
        print_note(f"no terminal could be opened ({exc}); the command writes to pipes")
        return None


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


def occupy_standard_descriptors() -> None:
    """Open /dev/null for each closed standard stream, so that no file opened later gets its descriptor number.

    The command does not inherit these descriptors: its streams stay closed. Without /dev/null, as in a bare
    chroot, nothing is opened.
    """
    with suppress(OSError):  # the command must start in any case
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _LAST_STANDARD:
            pass
        os.close(descriptor)
