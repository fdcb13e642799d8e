"""Delays the next drain of a stream while workers are busy, so that one transaction stores more messages.

See docs/decisions/0043.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

MOST_LINGER_S: Final = 0.2
"""Longest delay of the next drain of a stream, in seconds."""
LEAST_SHARE: Final = 0.2
"""Drains are not delayed while the process spends at most this share of its time in them."""
FULL_SHARE: Final = 0.4
"""The delay is `MOST_LINGER_S` if the process spends at least this share of its time in drains."""
ENOUGH_ENTRIES: Final = 500
"""With this many entries or more, the fixed cost of a transaction (5 to 15 ms of CPU time) matters little."""
MEMORY_S: Final = 1.0
"""Time constant, in seconds, of the average of the share."""


def linger_s(share: float, entries: int) -> float:
    """Return for how many seconds the next drain of a stream is delayed after a drain has emptied it.

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
