"""Reads the output of a command: shows its bytes unchanged and at once, and logs its lines to the run."""

from __future__ import annotations

import codecs
import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import IO, TYPE_CHECKING, Final, TextIO

from trainwire.ingest.lines.line_splitting import LineCutter
from trainwire.ingest.output.relay import await_writable
from trainwire.ingest.process.clock import monotonic_s
from trainwire.ingest.process.daemon_pool import start_daemon
from trainwire.schemas.wire.messages import LogType

if TYPE_CHECKING:
    from trainwire.ingest.run import Run

CHUNK_BYTES: Final = 64 * 1024
_POLL_S: Final = 0.05
COUNT_EVERY_S: Final = 10.0
"""Interval in seconds at which the number of repetitions is logged while a line keeps repeating."""


class OutputPipe:
    """Reads one output of the command (stdout or stderr) in a thread until its end; shows and logs it.

    The constructor closes `pipe` and raises `RuntimeError` if the system refuses a thread.
    """

    def __init__(
        self,
        pipe: IO[bytes],
        shown_on: TextIO | None,
        log_type: LogType,
        run: Run,
        *,
        fold_repeats: bool = False,
        on_lines: Callable[[Sequence[str], int], None] | None = None,
    ) -> None:
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
        self.is_busy = False
        """Whether the thread waits for a slow reader of the shown output, such as a pager, or searches metrics."""
        self.last_line: str | None = None
        try:
            self._thread = start_daemon(self._read, f"trainwire-{log_type}")
        except RuntimeError:
            pipe.close()
            raise

    def has_ended(self, timeout_s: float = 0.0) -> bool:
        """Wait up to `timeout_s` seconds; return whether the output was read to its end."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def close(self) -> None:
        """Log the unfinished last line, and log nothing that arrives later."""
        with self._lock:
            if self._is_open:
                self._is_open = False
                self._take_last()

    def abandon(self) -> None:
        """Close the pipe in a forked child: the thread that reads it exists only in the parent."""
        self._pipe.close()

    def _read(self) -> None:
        with self._pipe:
            while chunk := self._next_chunk():
                ts = time.time_ns()
                self.is_busy = True
                self._show(chunk)
                self.is_busy = False
                self._run.note_output()
                with self._lock:
                    if self._is_open:
                        self._take(self._cutter.feed(self._decoder.decode(chunk)), ts)

    def _next_chunk(self) -> bytes:
        try:
            return os.read(self._pipe.fileno(), CHUNK_BYTES)
        except OSError as exc:
            if exc.errno == errno.EIO:  # Linux: no process has the terminal open any more
                return b""
            raise

    def _take(self, lines: list[str], ts: int) -> None:
        self.last_line = next((line for line in reversed(lines) if line.strip()), self.last_line)
        if self._on_lines is not None and lines:
            self.is_busy = True
            self._on_lines(lines, ts)
            self.is_busy = False
        if self._folder is not None:
            lines = self._folder.feed(lines, monotonic_s())
        if lines:
            self._run.log_lines(lines, self._log_type, ts)

    def _take_last(self) -> None:
        ts = time.time_ns()
        self._take(self._cutter.feed(self._decoder.decode(b"", final=True)) + self._cutter.close(), ts)
        counts = [] if self._folder is None else self._folder.close()
        if counts:
            self._run.log_lines(counts, self._log_type, ts)

    def _show(self, chunk: bytes) -> None:
        while chunk and self._shown_fd is not None:
            try:
                chunk = chunk[os.write(self._shown_fd, chunk) :]
            except BlockingIOError:  # the inherited descriptor is non-blocking
                await_writable(self._shown_fd)
            except OSError:  # its reader has ended (`| head`), or the disk is full, maybe for a minute
                return  # the chunk is logged all the same


class RepeatFolder:
    """Replaces equal consecutive lines by the first of them and a line with the number of repetitions."""

    def __init__(self) -> None:
        self._line: str | None = None
        self._repeats = 0
        self._counted_s = 0.0

    def feed(self, lines: Sequence[str], now_s: float) -> list[str]:
        """Return the lines to log in place of `lines`, printed at `now_s` (seconds of a monotonic clock)."""
        kept: list[str] = []
        for line, group in groupby(lines):
            count = sum(1 for _ in group)
            if line == self._line:
                self._repeats += count
                continue
            kept += [*self.close(), line]
            self._line, self._repeats, self._counted_s = line, count - 1, now_s
        if now_s - self._counted_s >= COUNT_EVERY_S:
            kept += self.close()
            self._counted_s = now_s
        return kept

    def close(self) -> list[str]:
        """Return a list with the line that gives the number of repetitions of the last printed line.

        The list is empty if the last line was not repeated.
        """
        repeats, self._repeats = self._repeats, 0
        times = "time" if repeats == 1 else "times"
        return [f"trainwire: the last line came {repeats:,} more {times}"] if repeats else []


def await_ends(pipes: Sequence[OutputPipe], timeout_s: float) -> bool:
    """Wait until all pipes are read to their ends, then close them; return whether all were.

    The wait ends after `timeout_s` seconds. Time during which a slow reader of the shown output, such as a pager,
    or a slow search for metrics blocks a pipe is not counted.
    """
    while timeout_s > 0 and (unread := [pipe for pipe in pipes if not pipe.has_ended()]):
        began_s = monotonic_s()
        unread[0].has_ended(min(timeout_s, _POLL_S))
        if not any(pipe.is_busy for pipe in unread):
            timeout_s -= monotonic_s() - began_s
    have_ended = all(pipe.has_ended() for pipe in pipes)
    for pipe in pipes:
        pipe.close()
    return have_ended


def descriptor_of(stream: TextIO | None) -> int | None:
    """Flush a stream and return its file descriptor; None if it has none."""
    if stream is None:
        return None
    try:
        stream.flush()
        return stream.fileno()
    except (OSError, ValueError):  # replaced by an object without a file, or closed
        return None
