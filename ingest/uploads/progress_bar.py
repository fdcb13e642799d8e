"""Draws a progress bar for an upload, on a terminal only."""

from __future__ import annotations

import sys
from typing import Final, TextIO

from trainwire.ingest.process.clock import monotonic_s

_EVERY_S: Final = 0.2
_WIDTH: Final = 24
_CLEAR: Final = "\r\x1b[K"


class ProgressBar:
    """Draws a progress bar on the original stderr, which is not captured, if it is a terminal."""

    def __init__(self, title: str, total_bytes: int, stream: TextIO | None = None) -> None:
        self._title = title
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._drawn_at = 0.0
        stream = sys.__stderr__ if stream is None else stream
        self._terminal = stream if stream is not None and _is_terminal(stream) else None

    def advance(self, size_bytes: int) -> None:
        """Add `size_bytes`, the bytes sent since the last call, to the progress; redraw the bar if it is time."""
        self._done_bytes = min(self._total_bytes, self._done_bytes + size_bytes)
        if self._terminal is not None and monotonic_s() - self._drawn_at >= _EVERY_S:
            self._drawn_at = monotonic_s()
            share = self._done_bytes / max(1, self._total_bytes)
            bar = ("#" * round(share * _WIDTH)).ljust(_WIDTH, ".")
            self._write(f"{_CLEAR}{self._title} [{bar}] {share:4.0%} of {self._total_bytes / 1e6:.0f} MB")

    def clear(self) -> None:
        """Clear the line with the bar."""
        if self._drawn_at:
            self._write(_CLEAR)

    def _write(self, text: str) -> None:
        if self._terminal is not None:
            try:
                self._terminal.write(text)
                self._terminal.flush()
            except (OSError, ValueError):  # the terminal was closed
                self._terminal = None


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False
