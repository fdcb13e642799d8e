"""Celery's consumer with short pauses between attempts to connect to Redis."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from celery.worker.consumer import Consumer

FIRST_PAUSE_S: Final = 0.05
MOST_PAUSE_S: Final = 0.5
"""Longest pause in seconds before the next attempt; Celery's own pauses begin with 2 s and grow to 30 s."""
LOG_EVERY_S: Final = 10.0
"""Minimum interval in seconds between two log lines about failed attempts."""


class PromptConsumer(Consumer):
    """A consumer that is connected again half a second after Redis accepts connections."""

    def ensure_connected(self, conn: Any) -> Any:
        """Connect to the broker, and retry until it succeeds or the worker is stopped."""
        conn.ensure_connection = partial(
            _ensure_connection,
            conn.ensure_connection,
            interval_start=FIRST_PAUSE_S,
            interval_step=FIRST_PAUSE_S,
            interval_max=MOST_PAUSE_S,
        )
        return super().ensure_connected(conn)


def _ensure_connection(
    connect: Callable[..., Any], on_error: Callable[..., None], *args: Any, **options: Any
) -> Any:
    """Call kombu's `ensure_connection`, with an `on_error` that logs at most one failure in `LOG_EVERY_S`."""
    next_at = 0.0

    def log_some(*arguments: Any) -> None:
        nonlocal next_at
        if time.monotonic() >= next_at:
            next_at = time.monotonic() + LOG_EVERY_S
            on_error(*arguments)

    return connect(log_some, *args, **options)
