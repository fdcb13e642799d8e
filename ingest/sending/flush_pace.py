"""Computes the interval between two flushes of a trainer, which is longer while the workers are behind.

See docs/decisions/0043.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from trainwire.schemas.keys import BEHIND_FROM_S

LONGEST_INTERVAL_S: Final = 5.0
"""Longest interval between two flushes in seconds, unless `least_s` is longer."""
GROWTH: Final = 2.0
"""Length of the interval in seconds for each second above `BEHIND_FROM_S` that the workers are behind."""
NEAR: Final = 1.1
"""Intervals count as equal if their ratio is below this; without it, the interval would never reach its target."""


@dataclass(frozen=True, slots=True)
class FlushPace:
    """The interval between two flushes: `least_s`, or longer while the workers are behind."""

    least_s: float
    interval_s: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "interval_s", max(self.least_s, self.interval_s))

    @property
    def is_slow(self) -> bool:
        """Whether the interval is longer than `least_s`."""
        return self.interval_s > self.least_s

    def after(self, behind_s: float) -> FlushPace:
        """Return the pace after a report that the workers are `behind_s` seconds behind, 0 if they have room.

        The interval moves half of the way to its new value, so that a single report changes little.
        """
        wanted_s = min(LONGEST_INTERVAL_S, GROWTH * (behind_s - BEHIND_FROM_S))
        wanted_s = max(self.least_s, wanted_s)
        middle_s = (self.interval_s + wanted_s) / 2
        is_near = max(middle_s, wanted_s) < NEAR * min(middle_s, wanted_s)
        return replace(self, interval_s=wanted_s if is_near else middle_s)
