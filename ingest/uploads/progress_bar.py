"""One line on a terminal that says how far an upload is; never anywhere else."""

from __future__ import annotations

import sys
from typing import Final, TextIO

from trainwire.ingest.process.clock import monotonic_s

_EVERY_S: Final = 0.2
_WIDTH: Final = 24
_CLEAR: Final = "\r\x1b[K"


class ProgressBar:
    """Draws on the real stderr, past every capture, and only where that is a terminal."""

    def __init__(self, title: str, total_bytes: int, stream: TextIO | None = None) -> None:
        self._title = title
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._drawn_at = 0.0
        stream = sys.__stderr__ if stream is None else stream
        self._terminal = stream if stream is not None and _is_terminal(stream) else None

    def advance(self, size_bytes: int) -> None:
        """Note that so many bytes more are on their way."""
        self._done_bytes = min(self._total_bytes, self._done_bytes + size_bytes)
        if self._terminal is not None and monotonic_s() - self._drawn_at >= _EVERY_S:
            self._drawn_at = monotonic_s()
            share = self._done_bytes / max(1, self._total_bytes)
            bar = ("#" * round(share * _WIDTH)).ljust(_WIDTH, ".")
            self._write(f"{_CLEAR}{self._title} [{bar}] {share:4.0%} of {self._total_bytes / 1e6:.0f} MB")

    def clear(self) -> None:
        """Leave the line as it was before."""
        if self._drawn_at:
            self._write(_CLEAR)

    def _write(self, text: str) -> None:
        if self._terminal is not None:
            try:
                self._terminal.write(text)
                self._terminal.flush()
            except (OSError, ValueError):  # the terminal is gone
                self._terminal = None


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False
