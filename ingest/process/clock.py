"""A monotonic clock that tests of the training cannot freeze or move.

freezegun, time-machine and monkeypatching replace functions of `time` in the whole process, also for the
threads of trainwire. A deadline by such a clock might never pass. None of them replaces `clock_gettime`.
"""

from __future__ import annotations

import time


def monotonic_s() -> float:
    """Return the time of CLOCK_MONOTONIC in seconds, as `time.monotonic` does."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def monotonic_ns() -> int:
    """Return the time of CLOCK_MONOTONIC in nanoseconds."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)
