"""Capped exponential backoff, the same for everything that is tried again."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits between attempts, in seconds: doubled with each failure up to `cap_s`, with jitter."""

    first_s: float = 1.0
    cap_s: float = 300.0

    def delay_s(self, failures: int, jitter: Callable[[], float] = random.random) -> float:
        """Return the wait after so many failures in a row: between half and all of the doubled first wait.

        `jitter` returns a number from 0 to 1; with different waits, processes do not retry all at once.
        """
        doubled = min(self.first_s * 2.0 ** min(max(failures - 1, 0), 30), self.cap_s)
        return doubled * (0.5 + 0.5 * jitter())
