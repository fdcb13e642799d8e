"""Joins the pieces of output that W&B recorded into lines."""

from __future__ import annotations

from collections.abc import Iterator

from trainwire.cli.transfer.runs import MOST_CHARS, Line
from trainwire.schemas.wire.messages import LogType


class OutputLines:
    """Buffers the incomplete last lines of stdout and stderr."""

    def __init__(self) -> None:
        self._pieces: dict[LogType, list[str]] = {"stdout": [], "stderr": []}
        self._chars: dict[LogType, int] = {"stdout": 0, "stderr": 0}

    def add(self, log_type: LogType, text: str, ts: int) -> Iterator[Line]:
        """Add a piece of output to the buffered line; yield the lines that are now complete."""
        *ends, rest = text.split("\n")
        for end in ends:
            self._pieces[log_type].append(end)
            yield Line(ts, self._take(log_type), log_type)
        if rest:
            self._pieces[log_type].append(rest)
            self._chars[log_type] += len(rest)
            if self._chars[log_type] > MOST_CHARS:  # a progress bar without an end
                kept = self._take(log_type)
                self._pieces[log_type], self._chars[log_type] = [kept], len(kept)

    def finish(self, ts: int) -> Iterator[Line]:
        """Yield the buffered last lines of stdout and stderr, which do not end with a line break."""
        for log_type in self._pieces:
            if self._pieces[log_type]:
                yield Line(ts, self._take(log_type), log_type)

    def _take(self, log_type: LogType) -> str:
        """Remove the buffered line; return its text after the last carriage return, as a terminal shows it."""
        line = "".join(self._pieces[log_type]).rstrip("\r").rpartition("\r")[2]
        self._pieces[log_type], self._chars[log_type] = [], 0
        return line
