"""How long to wait before the next try: growing, capped, and never the same for two workers."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Capped exponential backoff with jitter, in seconds."""

    first_s: float = 1.0
    cap_s: float = 300.0

    def delay_s(self, attempts: int, jitter: Callable[[], float] = random.random) -> float:
        """Return the wait after so many failures in a row: between half and all of the doubled first wait."""
        doubled = min(self.first_s * 2.0 ** min(max(attempts - 1, 0), 30), self.cap_s)
        return doubled * (0.5 + 0.5 * jitter())
