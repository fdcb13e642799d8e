"""Logs the output of this process and its child processes, which still appears on the terminal or in the file."""

from __future__ import annotations

import ctypes
import io
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from trainwire.ingest.output.pipes import OutputPipe, await_ends
from trainwire.ingest.output.pseudo_terminal import Terminal
from trainwire.ingest.output.tee import Tee
from trainwire.schemas.wire.messages import LogType

if TYPE_CHECKING:
    from trainwire.ingest.run import Run

logger = logging.getLogger("trainwire.ingest")

DESCRIPTORS: Final[dict[LogType, int]] = {"stdout": 1, "stderr": 2}
RELAY: Final = Path(__file__).with_name("relay.py")
RELAY_START_TIMEOUT_S: Final = 10
STOP_TIMEOUT_S: Final = 10.0
"""Maximum time in seconds that `Capture.stop` waits for lines that were printed before.

Usually they arrive at once.
"""


class Capture:
    """Logs the output of this process and of its child processes, until `stop` or the end of its `with` block.

    File descriptors 1 and 2 are redirected to a relay process (`trainwire.ingest.output.relay`). It writes every
    byte to the original output and a copy to this process, so output of Python, C code and child processes is
    logged alike. A stream in `sys` that does not write to these descriptors, as in a notebook or under pytest,
    gets a `Tee`.
    """

    def __init__(self, run: Run) -> None:
        self._relay: _Relay | None = None
        try:
            self._relay = _Relay(run)
        except (OSError, RuntimeError, subprocess.SubprocessError) as exc:
            logger.warning(
                "job %s: no relay process, or no thread for it, could be started (%s): output of Python is "
                "logged, that of C code and subprocesses is only shown",
                run.job_id,
                exc,
            )
        behind = {} if self._relay is None else self._relay.descriptors
        self._tees = [
            Tee(log_type, run.log_lines, run.note_output)
            for log_type in DESCRIPTORS
            if (stream := getattr(sys, log_type)) is not None and _descriptor(stream) not in behind
        ]

    def stop(self) -> None:
        """Stop logging output, and restore stdout and stderr.

        Wait until everything printed so far is logged, at most `STOP_TIMEOUT_S` seconds.
        """
        for tee in self._tees:
            tee.stop()
        if self._relay is not None:
            self._relay.stop()
            self._relay = None

    def renew_after_fork(self) -> None:
        """Renew each `Tee` in a forked child, and close the inherited descriptors of the relay process.

        The parent still logs the child's output on descriptors 1 and 2.
        """
        for tee in self._tees:
            tee.renew()
        if self._relay is not None:
            self._relay.abandon()
            self._relay = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class NoCapture(Capture):
    """A `Capture` that does nothing, for a process whose output its launcher captures."""

    def __init__(self) -> None:
        self._relay = None
        self._tees = []


class _Relay:
    """Starts and stops the relay process, and redirects descriptors 1 and 2 of this process to it."""

    def __init__(self, run: Run) -> None:
        self._control = -1
        self._outputs: list[_Output] = []
        try:
            for log_type, descriptor in DESCRIPTORS.items():
                if _is_open(descriptor):
                    self._outputs.append(_Output(log_type, descriptor))
            if self._outputs:
                self._control = _start_relay(self._outputs)
            for output in self._outputs:  # before the first is redirected: the system may refuse a thread
                output.start_reading(run)
        except BaseException:
            for output in self._outputs:
                output.close()  # ends the relay and the threads
            if self._control >= 0:
                os.close(self._control)
            raise
        _flush_c_streams()
        for output in self._outputs:
            output.redirect()

    @property
    def descriptors(self) -> set[int]:
        """The descriptor numbers (1, 2) that are redirected to the relay."""
        return {output.descriptor for output in self._outputs}

    def stop(self) -> None:
        """Restore descriptors 1 and 2; wait until earlier output is logged, at most `STOP_TIMEOUT_S` seconds."""
        _flush_c_streams()
        for output in self._outputs:
            output.restore()
        if self._outputs:
            with suppress(OSError):  # the relay was killed
                os.write(self._control, b".")
            os.close(self._control)
        await_ends([output.pipe for output in self._outputs], STOP_TIMEOUT_S)

    def abandon(self) -> None:
        """Close the inherited descriptors in a forked child, so that the relay notices the parent's end."""
        for output in self._outputs:
            output.abandon()
        if self._outputs:
            os.close(self._control)


class _Output:
    """One descriptor (1 or 2) of this process that is redirected to the relay."""

    pipe: OutputPipe

    def __init__(self, log_type: LogType, descriptor: int) -> None:
        self.descriptor = descriptor
        self._log_type = log_type
        self._opened: list[int] = []
        self._saved = self._own(os.dup(descriptor))
        if os.isatty(descriptor):
            terminal = Terminal()
            self._source, self._writer = self._own(os.dup(terminal.output.fileno())), self._own(terminal.writer)
            terminal.output.close()
        else:
            self._source, self._writer = map(self._own, os.pipe())
        self._reader, self._copy = map(self._own, os.pipe())
        self._streams = [stream for stream in _text_streams() if _descriptor(stream) == descriptor]
        self._buffered = [stream for stream in self._streams if not stream.line_buffering]

    @property
    def relayed(self) -> tuple[int, int, int]:
        """The three descriptors that the relay process inherits: `source`, `shown` and `copy` (see `relay`)."""
        return self._source, self._saved, self._copy

    def start_reading(self, run: Run) -> None:
        """Start a thread that logs the copy to `run`. Raises `RuntimeError` if the system refuses a thread."""
        self._opened.remove(self._reader)  # `OutputPipe` closes it
        self.pipe = OutputPipe(open(self._reader, "rb", buffering=0), None, self._log_type, run)  # noqa: SIM115

    def redirect(self) -> None:
        """Redirect the descriptor to the relay process."""
        for stream in self._streams:
            with suppress(OSError, ValueError):  # the disk is full: the text stays in the stream
                stream.flush()
        for stream in self._buffered:
            with suppress(OSError, ValueError):
                stream.reconfigure(line_buffering=True)  # each line then has the time at which it was printed
        written = os.fstat(self._writer)
        self._identity = written.st_dev, written.st_ino
        os.dup2(self._writer, self.descriptor, inheritable=True)
        for descriptor in (self._source, self._writer, self._copy):
            os.close(descriptor)

    def restore(self) -> None:
        """Restore the descriptor, unless the training has redirected it to another file in the meantime."""
        for stream in self._streams:
            with suppress(OSError, ValueError):  # closed, or its reader has ended
                stream.flush()
        for stream in self._buffered:
            with suppress(OSError, ValueError):
                stream.reconfigure(line_buffering=False)
        with suppress(OSError):  # closed
            now = os.fstat(self.descriptor)
            if (now.st_dev, now.st_ino) == self._identity:
                os.dup2(self._saved, self.descriptor, inheritable=True)
        os.close(self._saved)

    def abandon(self) -> None:
        """Close the descriptors of this output in a forked child, which does not need them."""
        os.close(self._saved)
        self.pipe.abandon()

    def close(self) -> None:
        """Close the descriptors opened for this output, after the relay or a thread could not be started."""
        for descriptor in self._opened:
            os.close(descriptor)

    def _own(self, descriptor: int) -> int:
        self._opened.append(descriptor)
        return descriptor


def _start_relay(outputs: Sequence[_Output]) -> int:
    """Start the relay process; return a file descriptor: a byte written to it makes the relay stop copying.

    Raises `OSError` or `SubprocessError` if the relay does not start within `RELAY_START_TIMEOUT_S` seconds.
    """
    if not sys.executable or not RELAY.is_file():
        raise FileNotFoundError(f"Python is {sys.executable or 'unknown'!r}, the relay's file is {RELAY}")
    read, control = os.pipe()
    try:
        command = [sys.executable, "-I", "-S", str(RELAY), str(read)]
        command += [":".join(map(str, output.relayed)) for output in outputs]
        passed = [read, *(descriptor for output in outputs for descriptor in output.relayed)]
        subprocess.run(  # noqa: S603 - our own file
            command,
            check=True,
            timeout=RELAY_START_TIMEOUT_S,
            pass_fds=passed,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except BaseException:
        os.close(control)
        raise
    finally:
        os.close(read)
    return control


def _text_streams() -> list[io.TextIOWrapper]:
    """Return `sys.stdout`, `sys.stderr`, `sys.__stdout__` and `sys.__stderr__`, without duplicates.

    A stream that is not a `TextIOWrapper`, as in a notebook, is left out.
    """
    streams = {id(stream): stream for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)}
    return [stream for stream in streams.values() if isinstance(stream, io.TextIOWrapper)]


def _descriptor(stream: object) -> int | None:
    """Return the descriptor that a stream writes to; None if it has none or is closed."""
    try:
        return int(stream.fileno())  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError, TypeError):
        return None


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _flush_c_streams() -> None:
    """Flush the output buffers of the C library (stdio)."""
    with suppress(OSError, AttributeError):  # no C library to be found
        ctypes.CDLL(None).fflush(None)
