"""The schedule of beat. Ticks expire after a few intervals, so that they do not pile up for a stalled worker."""

from __future__ import annotations

from typing import Any, Final

from trainwire.schemas.keys import (
    BEAT_QUEUE,
    CHECKPOINT_QUEUE,
    DELETE_TASK,
    DELIVER_TICK_TASK,
    INGEST_QUEUE,
    LINK_TICK_TASK,
    LIVENESS_TASK,
    RETENTION_TASK,
    ROW_RETENTION_TASK,
    STRAYS_TASK,
    SWEEP_TASK,
    VERIFY_TASK,
)


def _tick(task: str, queue: str, every_s: float, expires_s: int) -> dict[str, Any]:
    return {
        "task": task,
        "schedule": every_s,
        "options": {"queue": queue, "expires": expires_s, "ignore_result": True},
    }


SCHEDULE: Final = {
    "order-overdue-drains": _tick(SWEEP_TASK, BEAT_QUEUE, every_s=1.0, expires_s=3),
    "drain-stray-streams": _tick(STRAYS_TASK, INGEST_QUEUE, every_s=10.0, expires_s=10),
    "wake-due-deliveries": _tick(DELIVER_TICK_TASK, BEAT_QUEUE, every_s=1.0, expires_s=3),
    "watch-trainers": _tick(LIVENESS_TASK, BEAT_QUEUE, every_s=2.0, expires_s=6),
    "link-mlflow-runs": _tick(LINK_TICK_TASK, BEAT_QUEUE, every_s=30.0, expires_s=20),
    "verify-due-checkpoints": _tick(VERIFY_TASK, CHECKPOINT_QUEUE, every_s=5.0, expires_s=10),
    "retain-checkpoints": _tick(RETENTION_TASK, CHECKPOINT_QUEUE, every_s=300.0, expires_s=120),
    "delete-jobs": _tick(DELETE_TASK, CHECKPOINT_QUEUE, every_s=2.0, expires_s=6),
    "retain-rows": _tick(ROW_RETENTION_TASK, CHECKPOINT_QUEUE, every_s=300.0, expires_s=120),
}
