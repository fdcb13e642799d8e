"""A monotonic clock that tests of the training do not freeze or move.

freezegun, time-machine and monkeypatching replace the functions of `time` in the whole process, for the threads of
trainwire too; a deadline by such a clock may never come. None of them replaces `clock_gettime`.
"""

from __future__ import annotations

import time


def monotonic_s() -> float:
    """Return the seconds of CLOCK_MONOTONIC, as `time.monotonic` does."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def monotonic_ns() -> int:
    """Return the nanoseconds of CLOCK_MONOTONIC."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)
