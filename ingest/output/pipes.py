"""Reads a child's output: shows its bytes unchanged and at once, and hands its lines to the run."""

from __future__ import annotations

import codecs
import errno
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, Final, TextIO

from trainwire.ingest.lines import LineCutter
from trainwire.ingest.output.repeats import RepeatFolder
from trainwire.ingest.process.clock import monotonic_s
from trainwire.ingest.process.daemon_pool import start_daemon
from trainwire.ingest.sending.batching import LogType

if TYPE_CHECKING:
    from trainwire.ingest.run import Run

CHUNK_BYTES: Final = 64 * 1024
_GLANCE_S: Final = 0.05


class OutputPipe:
    """One output of the child, a pipe or a terminal, read by a thread of its own until its end."""

    def __init__(
        self,
        pipe: IO[bytes] | None,
        shown_on: TextIO | None,
        log_type: LogType,
        run: Run,
        *,
        fold_repeats: bool = False,
        on_lines: Callable[[Sequence[str], int], None] | None = None,
    ) -> None:
        if pipe is None:
            raise ValueError(f"the child has no pipe as its {log_type}")
        self._pipe = pipe
        self._shown_fd = descriptor_of(shown_on)
        self._log_type = log_type
        self._run = run
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._cutter = LineCutter()
        self._on_lines = on_lines
        self._folder = RepeatFolder() if fold_repeats else None
        self._lock = threading.Lock()
        self._is_open = True
        self._is_showing = False
        self.last_line: str | None = None
        self._thread = start_daemon(self._read, f"trainwire-{log_type}")

    @property
    def has_ended(self) -> bool:
        """Tell whether everything was read."""
        return not self._thread.is_alive()

    @property
    def is_showing(self) -> bool:
        """Tell whether it waits for the person who watches."""
        return self._is_showing

    def await_end(self, timeout_s: float) -> None:
        """Wait until everything was read."""
        self._thread.join(timeout_s)

    def close(self) -> None:
        """Take the unfinished last line and nothing after it."""
        with self._lock:
            if self._is_open:
                self._is_open = False
                self._take_last()

    def abandon(self) -> None:
        """Close the pipe in a forked child, which has no thread to read it."""
        self._pipe.close()

    def _read(self) -> None:
        with self._pipe:
            while chunk := self._next_chunk():
                ts = time.time_ns()
                self._is_showing = True
                self._show(chunk)
                self._is_showing = False
                self._run.note_output()
                with self._lock:
                    if self._is_open:
                        self._take(self._cutter.feed(self._decoder.decode(chunk)), ts)

    def _next_chunk(self) -> bytes:
        try:
            return os.read(self._pipe.fileno(), CHUNK_BYTES)
        except OSError as exc:
            if exc.errno == errno.EIO:  # how Linux says that nobody has the terminal open any more
                return b""
            raise

    def _take(self, lines: list[str], ts: int) -> None:
        self.last_line = next((line for line in reversed(lines) if line.strip()), self.last_line)
        if self._on_lines is not None and lines:
            self._on_lines(lines, ts)
        if self._folder is not None:
            lines = self._folder.feed(lines, monotonic_s())
        if lines:
            self._run.log_lines(lines, self._log_type, ts)

    def _take_last(self) -> None:
        ts = time.time_ns()
        self._take(self._cutter.feed(self._decoder.decode(b"", final=True)) + self._cutter.close(), ts)
        told = [] if self._folder is None else self._folder.close()
        if told:
            self._run.log_lines(told, self._log_type, ts)

    def _show(self, chunk: bytes) -> None:
        while chunk and self._shown_fd is not None:
            try:
                chunk = chunk[os.write(self._shown_fd, chunk) :]
            except BlockingIOError:  # whoever gave us this descriptor made it non-blocking
                select.select([], [self._shown_fd], [])
            except OSError:  # nobody looks any more (`| head`): the run goes on and is still logged
                self._shown_fd = None


def await_ends(pipes: Sequence[OutputPipe], timeout_s: float) -> bool:
    """Wait for the ends of all pipes, then close them; return whether all came.

    The wait is `timeout_s` in total. What a person who watches slowly has not yet let through does not count:
    it comes from the command itself.
    """
    while timeout_s > 0 and (unread := [pipe for pipe in pipes if not pipe.has_ended]):
        began_s = monotonic_s()
        unread[0].await_end(min(timeout_s, _GLANCE_S))
        if not any(pipe.is_showing for pipe in unread):
            timeout_s -= monotonic_s() - began_s
    have_ended = all(pipe.has_ended for pipe in pipes)
    for pipe in pipes:
        pipe.close()
    return have_ended


def descriptor_of(stream: TextIO | None) -> int | None:
    """Return the file descriptor behind a stream, with nothing of it left in Python's buffer."""
    if stream is None:
        return None
    try:
        stream.flush()
        return stream.fileno()
    except (OSError, ValueError):  # replaced by something without a file, or closed
        return None
