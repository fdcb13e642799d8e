"""Logs outages of Redis, one line at the beginning and one at the end, with capped backoff in between."""

from __future__ import annotations

import errno
import logging
import os
from typing import Final

from trainwire.ingest.process.clock import monotonic_s
from trainwire.ingest.settings import Timing
from trainwire.schemas.backoff import Backoff

logger = logging.getLogger("trainwire.ingest")


_PASSING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS})
"""The process or the machine has no file descriptors, memory or buffers left now (errno(3))."""


def is_passing(exc: BaseException) -> bool:
    """Return whether an error is a lack of system resources, so that the same call may succeed later.

    An import without a file descriptor raises an `ImportError` with the error text of the system.
    """
    if isinstance(exc, ImportError):
        return any(os.strerror(number) in str(exc) for number in _PASSING)
    return isinstance(exc, MemoryError) or (isinstance(exc, OSError) and exc.errno in _PASSING)


class Unavailable(Exception):  # noqa: N818 - the word the whole project uses
    """Redis cannot take messages now; the message is the reason. The sender keeps all messages and retries."""


class Outage:
    """Counts consecutive failures, and computes the pause before the next attempt."""

    def __init__(self, timing: Timing, host: str) -> None:
        self._backoff = Backoff(timing.first_backoff_s, timing.longest_backoff_s)
        self._host = host
        self._failures = 0
        self.since: float | None = None
        """The beginning of the current outage on the monotonic clock; None without one."""

    def note_failure(self, error: Unavailable) -> float:
        """Log a warning for the first of consecutive failures; return the seconds to wait."""
        if self._failures == 0:
            self.since = monotonic_s()
            logger.warning(
                "cannot send to Redis at %s: %s; training goes on, messages are kept and sent later",
                self._host,
                str(error).rstrip("."),
            )
        self._failures += 1
        return self._backoff.delay_s(self._failures)

    def note_success(self) -> None:
        """Log the end of an outage, if there was one."""
        if self._failures:
            logger.info("Redis at %s takes messages again", self._host)
        self._failures = 0
        self.since = None
