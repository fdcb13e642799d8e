"""A steady clock that no test of the training freezes or moves.

freezegun, time-machine and plain monkeypatching replace the functions of `time` in the whole process, in the
threads of trainwire too; a deadline by such a clock may never come. None of them replaces `clock_gettime`.
"""

from __future__ import annotations

import time


def monotonic_s() -> float:
    """Return the seconds of CLOCK_MONOTONIC, as `time.monotonic` does."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def monotonic_ns() -> int:
    """Return the nanoseconds of CLOCK_MONOTONIC."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)
