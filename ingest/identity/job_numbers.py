"""Makes job numbers without any server: unique, positive, within a BIGINT, and ascending with time.

The layout and its arithmetic are in docs/decisions/0029-job-numbers.md: 17 bits count slots of two hours since
2026, 46 bits are random. Of 10,000 numbers made in one second, two are equal with a probability of 7.1e-7.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from typing import Final

from trainwire.ingest.process.forks import renew_in_children
from trainwire.schemas.wire.validation import LEAST_MADE_ID, MAX_ID

EPOCH_S: Final = 1_767_225_600
"""2026-01-01 UTC, in seconds since 1970."""
SLOT_S: Final = 7200
RANDOM_BITS: Final = 46
LAST_SLOT: Final = 2**17 - 1
"""The last slot, in November 2055. Later numbers are still unique, but no longer ascend with time."""
STEP_BITS: Final = 24


class NumberMaker:
    """Makes job numbers that ascend within a process; a forked child does not continue the parent's sequence."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.renew_after_fork()
        renew_in_children(self)

    def renew_after_fork(self) -> None:
        """In a forked child, forget the last number, so that parent and child do not make equal numbers."""
        self._last = 0
        self._lock = threading.Lock()

    def make(self) -> int:
        """Return a new job number. (The module's docstring states the probability of equal numbers.)"""
        with self._lock:
            number = (slot_at(self._clock()) << RANDOM_BITS) + _random(RANDOM_BITS)
            if number <= self._last <= MAX_ID - 2**STEP_BITS:
                number = self._last + 1 + _random(STEP_BITS)
            self._last = number
        return number


def slot_at(now_s: float) -> int:
    """Return the number of the two-hour slot at `now_s` (seconds since 1970), limited to 1 ... `LAST_SLOT`."""
    return min(max(1, int((now_s - EPOCH_S) // SLOT_S)), LAST_SLOT)


def number_of(identity: str) -> int:
    """Return a job number that is a hash of `identity`, so that all ranks of a launch compute the same number.

    It does not contain the time, because clocks of different machines differ.
    """
    digest = hashlib.blake2b(identity.encode(errors="surrogatepass"), digest_size=8).digest()
    return LEAST_MADE_ID + int.from_bytes(digest) % (MAX_ID - LEAST_MADE_ID + 1)


def _random(bits: int) -> int:
    return int.from_bytes(os.urandom(8)) >> (64 - bits)


make_number: Final = NumberMaker().make
