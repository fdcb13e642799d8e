"""What beat does, as data. Each tick expires before the next few, so that a stalled worker is not flooded."""

from __future__ import annotations

from typing import Any, Final

from schemas.routes import (
    BEAT_QUEUE,
    CHECKPOINT_QUEUE,
    DELIVER_TICK_TASK,
    LINK_TICK_TASK,
    LIVENESS_TASK,
    RETENTION_TASK,
    SWEEP_TASK,
    VERIFY_TASK,
)

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
    "watch-trainers": {
        "task": LIVENESS_TASK,
        "schedule": 2.0,
        "options": {"queue": BEAT_QUEUE, "expires": 6, "ignore_result": True},
    },
    "link-mlflow-runs": {
        "task": LINK_TICK_TASK,
        "schedule": 30.0,
        "options": {"queue": BEAT_QUEUE, "expires": 20, "ignore_result": True},
    },
    "verify-due-checkpoints": {
        "task": VERIFY_TASK,
        "schedule": 5.0,
        "options": {"queue": CHECKPOINT_QUEUE, "expires": 10, "ignore_result": True},
    },
    "retain-checkpoints": {
        "task": RETENTION_TASK,
        "schedule": 300.0,
        "options": {"queue": CHECKPOINT_QUEUE, "expires": 120, "ignore_result": True},
    },
}
