"""The schedule of Celery beat.

Orders expire after three intervals or earlier, so that they do not accumulate for a stopped worker.
"""

from __future__ import annotations

from typing import Any, Final

from trainwire.schemas import keys


def _tick(task: str, queue: str, every_s: float, expires_s: int) -> dict[str, Any]:
    return {
        "task": task,
        "schedule": every_s,
        "options": {"queue": queue, "expires": expires_s, "ignore_result": True},
    }


SCHEDULE: Final = {
    "order-overdue-drains": _tick(keys.SWEEP_TASK, keys.BEAT_QUEUE, every_s=1.0, expires_s=3),
    "drain-stray-streams": _tick(keys.STRAYS_TASK, keys.INGEST_QUEUE, every_s=10.0, expires_s=10),
    "wake-due-deliveries": _tick(keys.DELIVER_TICK_TASK, keys.BEAT_QUEUE, every_s=1.0, expires_s=3),
    "watch-trainers": _tick(keys.LIVENESS_TASK, keys.BEAT_QUEUE, every_s=2.0, expires_s=6),
    "send-alerts": _tick(keys.ALERT_TICK_TASK, keys.BEAT_QUEUE, every_s=2.0, expires_s=6),
    "link-mlflow-runs": _tick(keys.LINK_TICK_TASK, keys.BEAT_QUEUE, every_s=30.0, expires_s=20),
    "verify-due-checkpoints": _tick(keys.VERIFY_TASK, keys.CHECKPOINT_QUEUE, every_s=5.0, expires_s=10),
    "retain-checkpoints": _tick(keys.RETENTION_TASK, keys.CHECKPOINT_QUEUE, every_s=300.0, expires_s=120),
    "delete-jobs": _tick(keys.DELETE_TASK, keys.CHECKPOINT_QUEUE, every_s=2.0, expires_s=6),
    "roll-up-metrics": _tick(keys.ROLLUP_TASK, keys.CHECKPOINT_QUEUE, every_s=2.0, expires_s=6),
    "retain-rows": _tick(keys.ROW_RETENTION_TASK, keys.CHECKPOINT_QUEUE, every_s=300.0, expires_s=120),
}
