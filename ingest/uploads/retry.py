"""Retries uploads with capped exponential backoff."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from trainwire.ingest.process.clock import monotonic_s
from trainwire.ingest.servers.outage import is_passing
from trainwire.ingest.settings.setting_groups import Timing
from trainwire.schemas.backoff import Backoff

logger = logging.getLogger("trainwire.ingest")

T = TypeVar("T")


class StoreUnavailable(Exception):  # noqa: N818 - the word the whole project uses
    """A request to the object store failed, but may succeed later."""


class UploadAbandoned(Exception):  # noqa: N818 - named after its message
    """An upload has failed and is not retried any more; the message is the reason."""


class UploadRetry:
    """Retries requests to the object store until it has failed for `retry_s` seconds, or the run ends.

    The time counts from the start of an outage, not from that of an upload. Once an outage has lasted `retry_s`,
    each further upload is tried only once until the store works again, so that snapshots do not fill the disk.
    """

    def __init__(self, timing: Timing, retry_s: float) -> None:
        self._backoff = Backoff(timing.first_backoff_s, timing.longest_backoff_s)
        self._retry_s = retry_s
        self._stopped = threading.Event()
        self._failing_since: float | None = None

    @property
    def is_failing(self) -> bool:
        """Whether the last request to the object store failed."""
        return self._failing_since is not None

    def stop(self) -> None:
        """Abandon all current and later uploads."""
        self._stopped.set()

    def check(self) -> None:
        """Raise `UploadAbandoned` if `stop` was called."""
        if self._stopped.is_set():
            raise UploadAbandoned("the run ended before it was uploaded")

    def attempt(self, request: Callable[[], T]) -> T:
        """Call `request` until it succeeds, and return its result.

        Only `StoreUnavailable` and a lack of system resources are retried; other errors are raised. Raises
        `UploadAbandoned` once the outage has lasted `retry_s`, or if `stop` was called.
        """
        failures = 0
        while True:
            self.check()
            try:
                result = request()
            except (StoreUnavailable, OSError, ImportError, MemoryError) as exc:
                if not (isinstance(exc, StoreUnavailable) or is_passing(exc)):
                    raise
                self._note_failure(exc)
                failures += 1
                self._stopped.wait(self._backoff.delay_s(failures))
            else:
                self._note_success()
                return result

    def _note_failure(self, exc: Exception) -> None:
        now = monotonic_s()
        if self._failing_since is None:
            self._failing_since = now
            logger.warning("cannot upload checkpoints: %s; training goes on, the upload is tried again", exc)
        if now - self._failing_since >= self._retry_s:
            raise UploadAbandoned(f"{exc}; tried for {self._retry_s:g} s") from exc

    def _note_success(self) -> None:
        if self._failing_since is not None:
            logger.info("checkpoints can be uploaded again")
        self._failing_since = None
