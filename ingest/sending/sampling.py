"""Thins log storms: so many lines a second are taken, beyond that a sample, and what is left out is counted."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from trainwire.ingest.sending.batching import LogType

SAMPLE_EVERY: Final = 100
"""Beyond the limit one line of so many is taken."""
SECOND_NS: Final = 10**9


@dataclass(frozen=True, slots=True)
class Sample:
    """What is taken of some lines, how many are not, and what to say of the second that is over, if anything."""

    lines: Sequence[str]
    left_out: int = 0
    notice: str | None = None


@dataclass(slots=True)
class _Second:
    """The lines of one output since a moment."""

    began_ns: int
    seen: int = 0
    left_out: int = 0


@dataclass(slots=True)
class LineSampler:
    """Takes `lines_per_s` lines a second of each output, and beyond that every hundredth.

    Each of stdout and stderr has its own count, so that a storm on one does not hide an error on the other.
    """

    lines_per_s: int
    _seconds: dict[LogType, _Second] = field(default_factory=dict)
    # Re-entrant: a signal handler that prints may interrupt a caller inside the lock.
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def sample(self, lines: Sequence[str], log_type: LogType, now_ns: int) -> Sample:
        """Return what to take of lines that were said at `now_ns` (nanoseconds of a steady clock)."""
        with self._lock:
            second = self._seconds.get(log_type)
            notice = None
            if second is None or now_ns - second.began_ns >= SECOND_NS:
                notice = self._notice(second)
                second = self._seconds[log_type] = _Second(now_ns)
            room = max(0, self.lines_per_s - second.seen)
            beyond = max(0, second.seen - self.lines_per_s)
            second.seen += len(lines)
            if len(lines) <= room:
                return Sample(lines, notice=notice)
            kept = [*lines[:room], *lines[room + SAMPLE_EVERY - 1 - beyond % SAMPLE_EVERY :: SAMPLE_EVERY]]
            second.left_out += len(lines) - len(kept)
            return Sample(kept, len(lines) - len(kept), notice)

    def close(self) -> dict[LogType, str]:
        """Return the notices that are due where nothing more comes."""
        with self._lock:
            notices = {log_type: self._notice(second) for log_type, second in self._seconds.items()}
            self._seconds.clear()
        return {log_type: notice for log_type, notice in notices.items() if notice is not None}

    def _notice(self, second: _Second | None) -> str | None:
        if second is None or not second.left_out:
            return None
        return (
            f"trainwire: {second.left_out:,} of {second.seen:,} lines left out: "
            f"more than {self.lines_per_s:,} came within a second (TRAINWIRE_LOG_LINES_PER_S)"
        )
