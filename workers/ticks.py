"""Beat's scheduler: Celery's own, which says in a line now and then that Redis takes no orders."""

from __future__ import annotations

import time
from typing import Any, Final

import structlog
from celery.beat import Scheduler, SchedulingError
from kombu.exceptions import OperationalError

log = structlog.get_logger("workers.ticks")

SAY_EVERY_S: Final = 30.0


class Ticker(Scheduler):
    """Sends the ticks. One that Redis does not take is left out: the next comes soon."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._next_word = 0.0

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Send one tick."""
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except SchedulingError as exc:
            if not isinstance(exc.__context__, OperationalError):
                log.exception("beat.failed", tick=entry.name)
            elif time.monotonic() >= self._next_word:
                self._next_word = time.monotonic() + SAY_EVERY_S
                log.warning("beat.unavailable", tick=entry.name, reason=f"Redis took no order: {exc.__context__}")
