"""Reads a child's output: shows its bytes unchanged and at once, and hands its lines to the run."""

from __future__ import annotations

import codecs
import os
import select
import threading
import time
from collections.abc import Iterable
from typing import IO, Final, TextIO

from ingest.batches import LogType
from ingest.lines import LineCutter
from ingest.run import Run

CHUNK_BYTES: Final = 64 * 1024


class OutputPipe:
    """One output stream of the child, read by a thread of its own until its end."""

    def __init__(self, pipe: IO[bytes] | None, shown_on: TextIO | None, log_type: LogType, run: Run) -> None:
        if pipe is None:
            raise ValueError(f"the child has no pipe as its {log_type}")
        self._pipe = pipe
        self._shown_fd = _descriptor(shown_on)
        self._log_type = log_type
        self._run = run
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._cutter = LineCutter()
        self._lock = threading.Lock()
        self._is_open = True
        self.last_line: str | None = None
        self._thread = threading.Thread(target=self._read, name=f"trainwire-{log_type}", daemon=True)
        self._thread.start()

    def await_end(self, timeout_s: float) -> None:
        """Wait for the end of the output, then take the unfinished last line and nothing after it."""
        self._thread.join(timeout_s)
        with self._lock:
            if self._is_open:
                self._is_open = False
                self._take(self._cutter.feed(self._decoder.decode(b"", final=True)) + self._cutter.close())

    def _read(self) -> None:
        with self._pipe:
            while chunk := os.read(self._pipe.fileno(), CHUNK_BYTES):
                self._show(chunk)
                with self._lock:
                    if self._is_open:
                        self._take(self._cutter.feed(self._decoder.decode(chunk)))

    def _take(self, lines: list[str]) -> None:
        if lines:
            self._run.log_lines(lines, self._log_type, time.time_ns())
            self.last_line = next((line for line in reversed(lines) if line.strip()), self.last_line)

    def _show(self, chunk: bytes) -> None:
        while chunk and self._shown_fd is not None:
            try:
                chunk = chunk[os.write(self._shown_fd, chunk) :]
            except BlockingIOError:  # whoever gave us this descriptor made it non-blocking
                select.select([], [self._shown_fd], [])
            except OSError:  # nobody looks any more (`| head`): the run goes on and is still logged
                self._shown_fd = None


def await_ends(pipes: Iterable[OutputPipe], timeout_s: float) -> None:
    """Wait for the ends of all pipes, `timeout_s` in total."""
    deadline = time.monotonic() + timeout_s
    for pipe in pipes:
        pipe.await_end(max(0.0, deadline - time.monotonic()))


def _descriptor(stream: TextIO | None) -> int | None:
    """Return the file descriptor behind a stream, with nothing of it left in Python's buffer."""
    if stream is None:
        return None
    try:
        stream.flush()
        return stream.fileno()
    except (OSError, ValueError):  # replaced by something without a file, or closed
        return None
