"""What beat does, as data. Each tick expires before the next few, so that a stalled worker is not flooded."""

from __future__ import annotations

from typing import Any, Final

from schemas.routes import BEAT_QUEUE, DELIVER_TICK_TASK, SWEEP_TASK

SCHEDULE: Final[dict[str, dict[str, Any]]] = {
    "ring-for-overdue-streams": {
        "task": SWEEP_TASK,
        "schedule": 1.0,
        "options": {"queue": BEAT_QUEUE, "expires": 3, "ignore_result": True},
    },
    "wake-due-deliveries": {
        "task": DELIVER_TICK_TASK,
        "schedule": 1.0,
        "options": {"queue": BEAT_QUEUE, "expires": 3, "ignore_result": True},
    },
}
