"""Limits rollups to about a tenth of the time of each worker process while drains have a backlog."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import redis

from trainwire.schemas.keys import stream_key
from trainwire.schemas.streams.servers import ask_each
from trainwire.workers.drain.stream import redis_errors
from trainwire.workers.rollups.follower import REST_SHARE

TASK_S: Final = 1.5
"""Seconds after which a task begins no other slice."""
SLICE_S: Final = 0.2
"""Seconds of a slice; it is short, because a backlog is noticed only between two slices."""
BUSY_SLICE_S: Final = 0.05
CALM_S: Final = 10.0
"""Seconds after the last backlog for which drains still count as busy."""
BACKLOG_BYTES: Final = 256 * 1024
"""Memory of a stream in Redis from which its drain counts as not keeping up: about two batches of an import."""


class RollupPace:
    """Computes for how long rollups may run, and how long they pause, in one worker process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rested_at = 0.0
        self._calm_at = 0.0

    def slice_s(self, *, is_busy: bool) -> float:
        """Return for how many seconds rollups may run now, or 0 if they have to pause.

        `is_busy` states whether drains have a backlog now; they count as busy for `CALM_S` seconds after.
        """
        now = self._clock()
        if is_busy:
            self._calm_at = now + CALM_S
        if now >= self._calm_at:
            return SLICE_S
        return BUSY_SLICE_S if now >= self._rested_at else 0.0

    def note(self, spent_s: float) -> None:
        """Record for how many seconds rollups have run, from which the next pause is computed.

        They may run longer than allowed: a job with very many metrics is processed in one transaction.
        """
        self._rested_at = self._clock() + REST_SHARE * spent_s


def has_backlog(client: redis.Redis, shards: int) -> bool:
    """Return whether a stream of log lines or metrics takes more than `BACKLOG_BYTES` of memory.

    Servers of a cluster that do not answer are ignored. Raises `Unavailable` if a single Redis does not answer.
    """
    streams = [stream_key(kind, shard) for shard in range(shards) for kind in ("logs", "metrics")]
    with redis_errors():
        found = ask_each(client, {stream: [("MEMORY USAGE", stream)] for stream in streams})
    return any((size or 0) > BACKLOG_BYTES for (size,) in found.replies.values())
