"""Process that writes the output of a training to the terminal or file, and a copy to a pipe for logging.

It is a process, not a thread, because C code may print for minutes while it holds Python's global interpreter
lock: a pipe that only a thread reads would fill, and the training would block. `trainwire.ingest.output.capture`
runs this file as a script, so it imports the standard library alone.

Its arguments are file descriptors: a control pipe to read from, then `source:shown:copy` for each output. Bytes
are read from `source` until its end and written to `shown`. They are also written to `copy`, a pipe that the
training reads, until the training writes a byte to the control pipe.
"""

from __future__ import annotations

import os
import select
import sys
import termios
import threading
import time
from contextlib import suppress

CHUNK_BYTES = 64 * 1024
BUFFER_BYTES = 64 * 1024 * 1024
"""Maximum size of copied output that the training has not read. Further output is shown, but not copied."""
RESIZE_EVERY_S = 0.5
SETTLE_S = 0.02
"""Seconds without new output, after the stop request, until all output from before it counts as read."""
LONGEST_SETTLE_S = 1.0


class Relay(threading.Thread):
    """Thread that copies one output of the training (stdout or stderr) from `source` to `shown` and `copy`."""

    def __init__(self, source: int, shown: int, copy: int, stopping: threading.Event, wake: int) -> None:
        super().__init__()
        self._source = source
        self._shown = shown
        self._copy: int | None = copy
        self._stopping = stopping
        self._wake = wake
        self._pending = bytearray()
        self._left_out = 0
        self._size: tuple[int, int] | None = None
        os.set_blocking(copy, False)

    def run(self) -> None:
        """Copy the output until no process has it open for writing."""
        is_open = True
        while is_open:
            if self._copy is not None and self._stopping.is_set():
                is_open = self._settle()
                self._close_copy()
                continue
            is_open = self._step(RESIZE_EVERY_S if self._is_terminal() else None)
        self._close_copy()

    def _step(self, timeout_s: float | None) -> bool:
        """Wait until a descriptor is ready (at most `timeout_s` seconds, None: no limit), then read or write it.

        Return False at the end of the output.
        """
        poll = select.poll()
        poll.register(self._source, select.POLLIN)
        if self._copy is not None:
            poll.register(self._wake, select.POLLIN)
            if self._pending:
                poll.register(self._copy, select.POLLOUT)
        ready = dict(poll.poll(None if timeout_s is None else timeout_s * 1000))
        if self._copy in ready:
            self._write_copy()
        return self._source not in ready or self._pass_on()

    def _settle(self) -> bool:
        """Copy the output from before the training asked to stop; return False at the end of the output.

        It counts as copied after `SETTLE_S` without output, or after `LONGEST_SETTLE_S` at most.
        """
        deadline = time.monotonic() + LONGEST_SETTLE_S  # other processes may print without end
        poll = select.poll()
        poll.register(self._source, select.POLLIN)
        while time.monotonic() < deadline and poll.poll(SETTLE_S * 1000):
            if not self._pass_on():
                return False
        return True

    def _pass_on(self) -> bool:
        chunk = _read(self._source)
        self._show(chunk)
        if self._copy is not None:
            room = max(0, BUFFER_BYTES - len(self._pending))
            self._pending += chunk[:room]
            self._left_out += len(chunk) - len(chunk[:room])
        return bool(chunk)

    def _show(self, chunk: bytes) -> None:
        while chunk:
            try:
                chunk = chunk[os.write(self._shown, chunk) :]
            except BlockingIOError:  # the descriptor that the training inherited is non-blocking
                await_writable(self._shown)
            except OSError:  # its reader has ended (`| head`), or the disk is full, maybe for a minute
                return

    def _write_copy(self) -> None:
        assert self._copy is not None  # noqa: S101 - checked by the callers
        try:
            del self._pending[: os.write(self._copy, self._pending[:CHUNK_BYTES])]
        except BlockingIOError:
            pass
        except OSError:  # the training has ended
            self._pending.clear()
            os.close(self._copy)
            self._copy = None
        if not self._pending and self._left_out:
            self._pending += b"\ntrainwire: %d bytes of output were not read in time and are not logged\n" % (
                self._left_out
            )
            self._left_out = 0

    def _close_copy(self) -> None:
        if self._copy is None:
            return
        os.set_blocking(self._copy, True)
        while self._copy is not None and self._pending:
            self._write_copy()
        if self._copy is not None:
            os.close(self._copy)
            self._copy = None

    def _is_terminal(self) -> bool:
        """Return whether `shown` is a terminal; if so, copy its window size to the training's pseudo-terminal."""
        with suppress(OSError, termios.error):
            size = termios.tcgetwinsize(self._shown)
            if size != self._size:
                self._size = size
                termios.tcsetwinsize(self._source, size)
            return True
        return False


def _read(source: int) -> bytes:
    try:
        return os.read(source, CHUNK_BYTES)
    except OSError:  # EIO on Linux: no process has the terminal open
        return b""


def await_writable(descriptor: int) -> None:
    """Wait until the reader of a non-blocking descriptor has made room, or has ended."""
    poll = select.poll()  # `select.select` refuses descriptors above 1023
    poll.register(descriptor, select.POLLOUT)
    poll.poll()


def main(arguments: list[str]) -> None:
    """Fork into the background and copy the outputs; the new session keeps ctrl-C from ending this process.

    The exit code is 1 if the system refuses a thread to the background process.
    """
    started, begun = os.pipe()
    if os.fork():
        os.close(begun)
        os._exit(not os.read(started, 1))  # an orphan: os.wait() in the training never returns it
    os.setsid()
    control, *outputs = arguments
    stopping, (woken, wake) = threading.Event(), os.pipe()
    relays = []
    for output in outputs:
        source, shown, copy = map(int, output.split(":"))
        relays.append(Relay(source, shown, copy, stopping, woken))
    try:
        for relay in relays:
            relay.start()
    except RuntimeError:  # the training would block once the pipe that no thread reads is full
        os._exit(1)
    os.write(begun, b".")
    os.close(begun)
    os.read(int(control), 1)  # a byte, or the training's end
    stopping.set()
    os.close(wake)
    for relay in relays:
        relay.join()


if __name__ == "__main__":
    main(sys.argv[1:])
