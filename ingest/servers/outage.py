"""Tracks outages of the server: logs the start and the end of each, and computes the pauses between retries."""

from __future__ import annotations

import errno
import logging
import os
from typing import Final

from trainwire.ingest.process.clock import monotonic_s
from trainwire.ingest.servers.server_names import shown_server
from trainwire.ingest.settings.setting_groups import Timing
from trainwire.schemas.backoff import Backoff
from trainwire.schemas.gateway_urls import is_gateway

logger = logging.getLogger("trainwire.ingest")

REDIS_BACKOFF_CAP_S: Final = 1.0
"""Longest pause in seconds before Redis is tried again.

A connection costs Redis less than a connection with TLS costs a gateway.
"""

_PASSING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS})
"""Error numbers (errno(3)) of a temporary lack of file descriptors, memory, processes or buffers."""


def is_passing(exc: BaseException) -> bool:
    """Return whether `exc` reports a lack of system resources, so that the same call may succeed later.

    An `ImportError` counts too if it contains the text of such an error: without a free file descriptor, an import
    fails with it.
    """
    if isinstance(exc, ImportError):
        return any(os.strerror(number) in str(exc) for number in _PASSING)
    return isinstance(exc, MemoryError) or (isinstance(exc, OSError) and exc.errno in _PASSING)


class Unavailable(Exception):  # noqa: N818 - the word the whole project uses
    """The server cannot take messages now; the text is the reason. The sender keeps all messages and retries."""


class Refused(Unavailable):
    """The server does not accept this trainer; the text names the remedy. The sender sends nothing more."""


class NoServer(Unavailable):
    """No server is configured, and this user has no usable `trainwire up`; the text is a warning for the user.

    `is_logged` is True if this process or its launcher has already logged the text.
    """

    def __init__(self, text: str, *, is_logged: bool = False) -> None:
        super().__init__(text)
        self.is_logged = is_logged


class Outage:
    """Counts consecutive failures, logs start and end of an outage, and computes the pauses between retries."""

    def __init__(self, timing: Timing, *, is_logged_elsewhere: bool = False) -> None:
        """Create a counter without failures.

        If `is_logged_elsewhere` is True, another process has the same server and logs its outages and refusals, so
        this object logs them only at the level DEBUG.
        """
        self._is_logged_elsewhere = is_logged_elsewhere
        self._backoff = Backoff(timing.first_backoff_s, timing.longest_backoff_s)
        self._failures = 0
        self._server = ""
        self.is_without_server = False
        """Whether the last failure was a `NoServer`."""
        self.since: float | None = None
        """Start of the current outage, in seconds of the monotonic clock; None without an outage."""

    def note_failure(self, error: Unavailable, address: str | None) -> float:
        """Count a failure, and log it unless the outage is already logged; return the seconds to wait.

        A refusal is logged each time. The pause is at most `REDIS_BACKOFF_CAP_S` if `address` is that of a Redis.
        """
        self.is_without_server = isinstance(error, NoServer)
        if self._failures == 0:
            self.since = monotonic_s()
        if isinstance(error, NoServer):
            if not error.is_logged and not self._failures:
                logger.warning("%s", error)
        elif isinstance(error, Refused):
            level = logging.DEBUG if self._is_logged_elsewhere else logging.ERROR
            logger.log(level, "%s; training goes on, messages are kept and not sent", str(error).rstrip("."))
        elif not self._server:
            self._server = shown_server(address)
            text = "cannot send to %s: %s; training goes on, messages are kept and sent later"
            level = logging.DEBUG if self._is_logged_elsewhere else logging.WARNING
            logger.log(level, text, self._server, str(error).rstrip("."))
        self._failures += 1
        backoff = self._backoff
        if address is not None and not is_gateway(address):
            backoff = backoff._replace(cap_s=min(backoff.cap_s, REDIS_BACKOFF_CAP_S))
        return backoff.delay_s(self._failures)

    def note_success(self) -> None:
        """Reset the backoff, and log the end of the outage if its start was logged with the server's name."""
        if self._server:
            level = logging.DEBUG if self._is_logged_elsewhere else logging.WARNING  # shown where its start is
            logger.log(level, "%s takes messages again", self._server)
        self._failures, self._server, self.is_without_server = 0, "", False
        self.since = None
