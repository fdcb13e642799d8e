"""Runs the command of `trainwire run`, and shows and logs its output."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Final, TextIO

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
