"""Limits the number of log lines per second: above the limit only a sample of the lines is logged."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from trainwire.schemas.wire.messages import LogType

SAMPLE_EVERY: Final = 100
"""Above the limit, one line out of this many is logged."""
SECOND_NS: Final = 10**9


@dataclass(frozen=True, slots=True)
class LineSample:
    """The `lines` to log of some printed lines.

    `left_out` is the number of lines that are not logged. `notice` is an additional line to log, with the number
    of lines that were left out in an earlier second; None if there were none.
    """

    lines: Sequence[str]
    left_out: int = 0
    notice: str | None = None


@dataclass(slots=True)
class _Second:
    """Counts of lines printed to stdout or stderr, and of those left out, in the second from `began_ns` on."""

    began_ns: int
    seen: int = 0
    left_out: int = 0


@dataclass(slots=True)
class LineSampler:
    """Selects the lines to log: the first `lines_per_s` of each second, and one in `SAMPLE_EVERY` of the rest.

    stdout and stderr are counted separately, so that many lines on one do not suppress an error on the other.
    """

    lines_per_s: int
    _seconds: dict[LogType, _Second] = field(default_factory=dict)
    # Re-entrant: a signal handler that prints may interrupt a caller inside the lock.
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def sample(self, lines: Sequence[str], log_type: LogType, now_ns: int) -> LineSample:
        """Return the sample of `lines`, which were printed at `now_ns` (nanoseconds of a monotonic clock)."""
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
                return LineSample(lines, notice=notice)
            kept = [*lines[:room], *lines[room + SAMPLE_EVERY - 1 - beyond % SAMPLE_EVERY :: SAMPLE_EVERY]]
            second.left_out += len(lines) - len(kept)
            return LineSample(kept, len(lines) - len(kept), notice)

    def close(self) -> dict[LogType, str]:
        """Return, by log type, a last line to log: the number of lines left out since the previous notice.

        A log type without such lines is absent.
        """
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
