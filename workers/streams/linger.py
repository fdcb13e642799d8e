"""Lets messages of busy streams collect, so that one transaction takes many of them (decision 43)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

from trainwire.schemas.keys import Kind

MOST_LINGER_S: Final = 0.2
"""Longest time in seconds for which messages wait so that more of them collect."""
LEAST_SHARE: Final = 0.2
"""Share of its time that a process spends in drains, up to which no stream has to wait."""
FULL_SHARE: Final = 0.4
"""Share from which streams wait for `MOST_LINGER_S`."""
ENOUGH_ENTRIES: Final = 500
"""Entries of a transaction from which its fixed cost (5 to 15 ms of CPU time) matters little."""
MEMORY_S: Final = 1.0
"""Time constant, in seconds, of the average of the share."""
LINGERING_KINDS: Final[tuple[Kind, ...]] = ("logs", "metrics")
"""The kinds with many messages; checkpoints and completions are few and urgent."""


def linger_s(share: float, entries: int) -> float:
    """Return for how many seconds a stream is left alone after a drain has emptied it.

    Args:
        share: the share of its time that this process spends in drains.
        entries: the number of entries in the last transaction of the stream.
    """
    if entries >= ENOUGH_ENTRIES:
        return 0.0
    return MOST_LINGER_S * min(1.0, max(0.0, (share - LEAST_SHARE) / (FULL_SHARE - LEAST_SHARE)))


class DrainShare:
    """Measures the share of its time that this process spends in drains, as an average over about `MEMORY_S`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._share = 0.0
        self._at = clock()
        self._is_draining = False

    def begin(self) -> None:
        """Record the beginning of a drain."""
        self.share()
        self._is_draining = True

    def end(self) -> None:
        """Record the end of the drain."""
        self.share()
        self._is_draining = False

    def share(self) -> float:
        """Return the share, from 0 to 1, including the drain that runs now."""
        now = self._clock()
        kept = math.exp((self._at - now) / MEMORY_S)
        self._share = self._share * kept + (1.0 - kept if self._is_draining else 0.0)
        self._at = now
        return self._share
