"""Copies what this process prints to its run, while it is still shown."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TextIO

from ingest.batches import LogType
from ingest.lines import LineCutter
from ingest.plain import plain_text

TakeLines = Callable[[Sequence[str], LogType, int], None]
"""Takes lines, the stream they came from, and when (nanoseconds since 1970)."""

NoteOutput = Callable[[], None]
"""Counts output as a sign of life, also where it completes no line."""


class Tee:
    """A text stream that shows everything on the original one and hands complete lines on.

    What is written to its `buffer` or its file descriptor directly is shown but not captured.
    """

    def __init__(
        self, original: TextIO, log_type: LogType, take_lines: TakeLines, note_output: NoteOutput = lambda: None
    ) -> None:
        self.original = original
        self._note_output = note_output
        self._log_type = log_type
        self._take_lines = take_lines
        self._is_open = True
        self.renew()

    def renew(self) -> None:
        """Start over: a forked child has nobody to release the lock, and the unfinished line is its parent's."""
        self._lock = threading.RLock()
        self._cutter = LineCutter()
        self._is_taking = False

    def write(self, text: str) -> int:
        """Write to the original stream, then take the lines that are complete."""
        written = self.original.write(text)
        self._note_output()
        with self._lock:
            # Taking lines may itself print (a warning): that is shown, not taken, or it would never end.
            if self._is_open and not self._is_taking:
                self._take(self._cutter.feed(plain_text(text)))
        return written

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each text."""
        for line in lines:
            self.write(line)

    def close_capture(self) -> None:
        """Take the unfinished last line and nothing after it; the original stream stays open."""
        with self._lock:
            if self._is_open:
                self._is_open = False
                self._take(self._cutter.close())

    def _take(self, lines: list[str]) -> None:
        if not lines:
            return
        self._is_taking = True
        try:
            self._take_lines(lines, self._log_type, time.time_ns())
        finally:
            self._is_taking = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)


class Capture:
    """sys.stdout and sys.stderr replaced by tees, until `stop` or the end of its `with` block."""

    def __init__(self, take_lines: TakeLines, note_output: NoteOutput = lambda: None) -> None:
        self._tees: dict[str, Tee] = {}
        log_types: tuple[LogType, ...] = ("stdout", "stderr")
        for log_type in log_types:
            original = getattr(sys, log_type)
            if original is not None:  # pythonw has no streams
                self._tees[log_type] = Tee(original, log_type, take_lines, note_output)
                setattr(sys, log_type, self._tees[log_type])

    def stop(self) -> None:
        """Put the original streams back where they still are ours."""
        for name, tee in self._tees.items():
            tee.close_capture()
            if getattr(sys, name) is tee:
                setattr(sys, name, tee.original)

    def renew_after_fork(self) -> None:
        """Make the tees usable in a forked child."""
        for tee in self._tees.values():
            tee.renew()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class NoCapture(Capture):
    """Stands in where the launcher captures already."""

    def __init__(self) -> None:
        self._tees = {}
