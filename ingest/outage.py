"""Logs outages of the server, one line at the beginning and one at the end, with capped backoff in between."""

from __future__ import annotations

import errno
import logging
import os
from typing import Final

from trainwire.ingest.process.clock import monotonic_s
from trainwire.ingest.server_names import shown_server
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
    """The server cannot take messages now; the text is the reason. The sender keeps all messages and retries."""


class Refused(Unavailable):
    """The server does not accept this trainer; the text is one sentence with the remedy. Nothing more is sent."""


class NoServer(Unavailable):
    """No server is named, and no `trainwire up` of this user can be used; the text is one sentence for people.

    With `is_logged` that sentence was logged before, here or by the launcher.
    """

    def __init__(self, text: str, *, is_logged: bool = False) -> None:
        super().__init__(text)
        self.is_logged = is_logged


class Outage:
    """Counts consecutive failures, logs the first of them, and computes the pause before the next attempt."""

    def __init__(self, timing: Timing, *, is_refusal_logged: bool = False) -> None:
        """Begin without an outage; `is_refusal_logged` if another process logs the server's refusal."""
        self._is_refusal_logged = is_refusal_logged
        self._backoff = Backoff(timing.first_backoff_s, timing.longest_backoff_s)
        self._failures = 0
        self._server = ""
        self.is_without_server = False
        """Whether the last failure was that there is no server to connect to."""
        self.since: float | None = None
        """The beginning of the current outage on the monotonic clock; None without one."""

    def note_failure(self, error: Unavailable, address: str | None) -> float:
        """Log a warning for the first of consecutive failures of this server; return the seconds to wait."""
        self.is_without_server = isinstance(error, NoServer)
        if self._failures == 0:
            self.since = monotonic_s()
        if isinstance(error, NoServer):
            if not error.is_logged and not self._failures:
                logger.warning("%s", error)
        elif isinstance(error, Refused):
            level = logging.DEBUG if self._is_refusal_logged else logging.ERROR
            logger.log(level, "%s; training goes on, messages are kept and not sent", str(error).rstrip("."))
        elif not self._server:
            self._server = shown_server(address)
            text = "cannot send to %s: %s; training goes on, messages are kept and sent later"
            logger.warning(text, self._server, str(error).rstrip("."))
        self._failures += 1
        return self._backoff.delay_s(self._failures)

    def note_success(self) -> None:
        """Log the end of an outage, if there was one."""
        if self._server:
            logger.info("%s takes messages again", self._server)
        self._failures, self._server, self.is_without_server = 0, "", False
        self.since = None
