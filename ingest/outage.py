"""One warning when the way to Redis breaks, one line when it is back, and growing pauses in between."""

from __future__ import annotations

import errno
import logging
import os
from typing import Final

from trainwire.ingest.process.clock import monotonic_s
from trainwire.ingest.settings import Timing, shown_host
from trainwire.schemas.backoff import Backoff

logger = logging.getLogger("trainwire.ingest")


_PASSING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS})
"""The process or the machine has no descriptors, memory or buffers left (errno(3)): it may have some later."""


def is_passing(exc: BaseException) -> bool:
    """Return whether an error is one of the system's resources, after which the same call may succeed.

    An import that finds no descriptor for a library raises an `ImportError` with the system's words.
    """
    if isinstance(exc, ImportError):
        return any(os.strerror(number) in str(exc) for number in _PASSING)
    return isinstance(exc, MemoryError) or (isinstance(exc, OSError) and exc.errno in _PASSING)


class Unavailable(Exception):  # noqa: N818 - the word the whole project uses
    """Redis cannot take messages now; the text says why. Everything is kept and tried again."""


class NoServer(Unavailable):
    """No server is named, and no `trainwire up` of this user can be used; the text is one sentence for people.

    With `is_logged` that sentence was logged before, here or by the launcher.
    """

    def __init__(self, text: str, *, is_logged: bool = False) -> None:
        super().__init__(text)
        self.is_logged = is_logged


class Outage:
    """Counts failures in a row, logs the first of them, and computes when to try next."""

    def __init__(self, timing: Timing) -> None:
        self._backoff = Backoff(timing.first_backoff_s, timing.longest_backoff_s)
        self._failures = 0
        self._host = ""
        self.is_without_server = False
        """Whether the last failure was that there is no server to connect to."""
        self.since: float | None = None
        """When it began, on the monotonic clock; None while there is none."""

    def note_failure(self, error: Unavailable, address: str | None) -> float:
        """Warn on the first failure in a row, of the server at `address`; return the seconds to wait."""
        self.is_without_server = isinstance(error, NoServer)
        if self._failures == 0:
            self.since = monotonic_s()
        if isinstance(error, NoServer):
            if not error.is_logged and not self._failures:
                logger.warning("%s", error)
        elif not self._host:
            self._host = f" at {shown_host(address)}" if address else " "
            logger.warning(
                "cannot send to Redis%s: %s; training goes on, messages are kept and sent later",
                self._host.rstrip(),
                str(error).rstrip("."),
            )
        self._failures += 1
        return self._backoff.delay_s(self._failures)

    def note_success(self) -> None:
        """Say so when an outage is over."""
        if self._host:
            logger.info("Redis%s takes messages again", self._host.rstrip())
        self._failures, self._host, self.is_without_server = 0, "", False
        self.since = None
