"""Capped exponential backoff with jitter, for all retries."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple


class Backoff(NamedTuple):
    """Delays between attempts in seconds: doubled with each failure up to `cap_s`, with jitter."""

    first_s: float = 1.0
    cap_s: float = 300.0

    def delay_s(self, failures: int, jitter: Callable[[], float] = random.random) -> float:
        """Return the delay after this number of consecutive failures: 50 to 100 % of the doubled first delay.

        `jitter` returns a number from 0 to 1; it spreads the retries of several processes.
        """
        doubled = min(self.first_s * 2.0 ** min(max(failures - 1, 0), 30), self.cap_s)
        return doubled * (0.5 + 0.5 * jitter())
