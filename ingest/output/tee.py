"""Logs the text written to a Python stream that has no file descriptor, as in notebooks and under pytest."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from trainwire.ingest.lines.line_splitting import LineCutter
from trainwire.ingest.sanitize import plain_text
from trainwire.schemas.wire.messages import LogType

TakeLines = Callable[[Sequence[str], LogType, int], None]
"""Called with lines, their log type and their time in nanoseconds since 1970."""
NoteOutput = Callable[[], None]
"""Called for each write, even if it completes no line."""


class Tee:
    """Replaces `write` of `sys.stdout` or `sys.stderr` by a method that also logs complete lines, until `stop`.

    The stream stays the same object, so that output of log handlers that refer to it is logged too. If `write` is
    read-only, the stream itself is replaced in `sys`. Bytes written to the stream's `buffer` are not logged.
    """

    def __init__(self, log_type: LogType, take_lines: TakeLines, note_output: NoteOutput = lambda: None) -> None:
        self._stream = getattr(sys, log_type)
        self._write: Callable[[str], int] = self._stream.write
        self._log_type = log_type
        self._take_lines = take_lines
        self._note_output = note_output
        self._is_open = True
        self.renew()
        try:
            self._stream.write = self.write
        except AttributeError:
            setattr(sys, log_type, self)

    def renew(self) -> None:
        """Create a new lock and line buffer, for a forked child: a copied lock may never be released."""
        self._lock = threading.RLock()
        self._cutter = LineCutter()
        self._is_taking = False

    def write(self, text: str) -> int:
        """Write to the stream, then log the complete lines."""
        written = self._write(text)
        self._note_output()
        with self._lock:
            # Logging may itself print a warning: it is shown and not logged, to avoid endless recursion.
            if self._is_open and not self._is_taking:
                self._take(self._cutter.feed(plain_text(text)))
        return written

    def writelines(self, lines: Sequence[str]) -> None:
        """Call `write` for each of the texts in `lines`."""
        for line in lines:
            self.write(line)

    def stop(self) -> None:
        """Log the unfinished last line, and restore the stream unless other code has replaced it since."""
        with self._lock:
            if self._is_open:
                self._is_open = False
                self._take(self._cutter.close())
        if getattr(sys, self._log_type) is self:
            setattr(sys, self._log_type, self._stream)
        elif getattr(self._stream, "__dict__", {}).get("write") == self.write:
            with suppress(AttributeError):
                del self._stream.write

    def _take(self, lines: list[str]) -> None:
        if not lines:
            return
        self._is_taking = True
        try:
            self._take_lines(lines, self._log_type, time.time_ns())
        finally:
            self._is_taking = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
