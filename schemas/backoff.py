"""Capped exponential backoff with jitter, for all retries."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

LONGEST_RETRY_AFTER_S: Final = 600.0


class Backoff(NamedTuple):
    """Delays between retries: `first_s` seconds, doubled with each failure up to `cap_s`, with jitter."""

    first_s: float = 1.0
    cap_s: float = 300.0

    def delay_s(self, failures: int, jitter: Callable[[], float] = random.random) -> float:
        """Return the delay in seconds after this number of consecutive failures.

        The delay is 50 to 100 % of a time that is `first_s` for the first failure and doubles with each further
        one up to `cap_s`. `jitter` returns a random number from 0 to 1, which selects the percentage, so that
        several processes do not retry at the same time.
        """
        doubled = min(self.first_s * 2.0 ** min(max(failures - 1, 0), 30), self.cap_s)
        return doubled * (0.5 + 0.5 * jitter())


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the value of a Retry-After header in seconds, from 0 to `LONGEST_RETRY_AFTER_S`.

    Returns None if the header is absent or is not a number of seconds.
    """
    try:
        seconds = float(headers["Retry-After"])
    except (KeyError, ValueError):
        return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), LONGEST_RETRY_AFTER_S)
