"""How long an object store that is away is tried again, with growing pauses."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from trainwire.ingest.outage import is_passing
from trainwire.ingest.process.clock import monotonic_s
from trainwire.ingest.settings import Timing
from trainwire.schemas.backoff import Backoff

logger = logging.getLogger("trainwire.ingest")

T = TypeVar("T")


class StoreUnavailable(Exception):  # noqa: N818 - the word the whole project uses
    """The store cannot take it now: the same request may succeed later."""


class GivenUp(Exception):  # noqa: N818 - said as it stands
    """It is not tried any more; the text says why."""


class Patience:
    """Tries again until the store has been away for `retry_s` without a success, or the run ends.

    It counts for all uploads together: after an outage has cost one checkpoint its upload, the next ones are tried
    once each until the store is back, so that snapshots never pile up.
    """

    def __init__(self, timing: Timing, retry_s: float) -> None:
        self._backoff = Backoff(timing.first_backoff_s, timing.longest_backoff_s)
        self._retry_s = retry_s
        self._stopped = threading.Event()
        self._failing_since: float | None = None

    @property
    def is_tried(self) -> bool:
        """Tell whether the store was away when it was last asked."""
        return self._failing_since is not None

    def stop(self) -> None:
        """End every attempt, now and from now on."""
        self._stopped.set()

    def check(self) -> None:
        """Raise `GivenUp` once `stop` was called."""
        if self._stopped.is_set():
            raise GivenUp("the run ended before it was uploaded")

    def attempt(self, request: Callable[[], T]) -> T:
        """Return what `request` returns, called as often as it needs; raise `GivenUp` when it is enough."""
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
            raise GivenUp(f"{exc}; tried for {self._retry_s:g} s") from exc

    def _note_success(self) -> None:
        if self._failing_since is not None:
            logger.info("checkpoints can be uploaded again")
        self._failing_since = None
