"""The examples of the OpenAPI document: a training halfway through its epochs."""

from __future__ import annotations

from typing import Any, Final

_AT: Final = "2026-09-21T14:13:20.123456Z"
_TS: Final = 1_790_000_000_123_456_000

JOB: Final[dict[str, Any]] = {
    "id": 42,
    "name": "digits",
    "status": "running",
    "status_reason": None,
    "attempt": 1,
    "created_at": _AT,
    "started_at": _AT,
    "completed_at": None,
    "last_seen_at": _AT,
    "quiet_since": None,
    "current_epoch": 3,
    "total_epochs": 10,
    "progress_percent": 30.0,
    "final_metrics": None,
    "best_metrics": None,
    "best_epoch": None,
    "best_checkpoint_path": "s3://models/42/best.pt",
    "last_checkpoint_path": "s3://models/42/epoch-3.pt",
    "mlflow_run_id": None,
    "exit_code": None,
    "error_message": None,
    "rows": {"logs": 120, "metrics": 45, "checkpoints": 3},
    "last_metrics": {"loss": 0.31, "accuracy": 0.9, "grad_norm": "NaN"},
    "sparkline": {"name": "loss", "values": [2.3, 0.9, 0.31]},
}
JOB_PAGE: Final = {"items": [JOB], "next": "MjAyNi0wOS0yMVQxNDoxMzoyMC4xMjM0NTYrMDA6MDB8NDI"}
JOB_DETAIL: Final = JOB | {
    "params": {"lr": 0.001},
    "tags": None,
    "mlflow_url": None,
    "attempts": [
        {
            "attempt": 1,
            "status": "running",
            "started_at": _AT,
            "completed_at": None,
            "exit_code": None,
            "error_message": None,
        }
    ],
    "metric_names": ["accuracy", "grad_norm", "loss"],
    "metric_names_complete": True,
    "results_complete": True,
    "traceback": None,
}
NAME_PAGE: Final = {"items": ["accuracy", "grad_norm", "loss"], "next": None, "complete": True}
LOG_PAGE: Final = {
    "items": [
        {"seq": 119, "attempt": 1, "ts": _TS, "log_type": "stdout", "text": "epoch 3"},
        {
            "seq": 120,
            "attempt": 1,
            "ts": _TS + 1000,
            "log_type": "stderr",
            "text": "slow disk",
            "level": "WARNING",
        },
    ],
    "first_seq": 119,
    "last_seq": 120,
    "total": 120,
    "scanned": None,
}
SERIES: Final = {
    "name": "loss",
    "attempt": 1,
    "rank": None,
    "points": [[1, _TS, 2.3, 1, 1], [2, _TS, 0.9, 1, 2]],
}
METRIC_PAGE: Final = {"series": [SERIES], "last_seq": 45, "downsampled": False}
COMPARISON: Final = {
    "jobs": [JOB],
    "series": [{"job_id": 42, "name": "loss", "attempt": 1, "points": SERIES["points"]}],
}
CHECKPOINT_PAGE: Final = {
    "items": [
        {
            "seq": 3,
            "attempt": 1,
            "ts": _TS,
            "checkpoint_kind": "best",
            "uri": "s3://models/42/best.pt",
            "is_best": True,
            "is_last": False,
            "state": "verified",
            "epoch": 3,
            "size_bytes": 50_000_000,
            "verified_at": _AT,
        }
    ]
}
LOAN: Final = {"url": "https://models.s3.amazonaws.com/42/best.pt?X-Amz-Signature=0", "expires_at": _AT}
COMPLETENESS: Final = {
    "state": "open",
    "status": "running",
    "line": "open: 12 messages produced = 12 stored + 0 dead-lettered + 0 missing + 0 dropped",
    "produced": 12,
    "stored": 12,
    "dead_lettered": 0,
    "missing": 0,
    "lost": {},
    "dropped": 0,
    "gaps": [],
    "losses": [],
    "open_sources": ["0-7f3a91c2"],
    "silent_sources": [],
    "absent_ranks": [],
}
DELIVERIES: Final = {
    "items": [
        {
            "sink": "loki",
            "title": "Loki",
            "confirmed_seq": 118,
            "behind_rows": 2,
            "behind_s": 0.3,
            "dead_lettered": 0,
            "last_error": None,
            "next_probe_at": None,
            "is_down": False,
            "words": "2 lines behind",
        }
    ]
}
ACCEPTED: Final = {"status": "accepted", "job_id": 42}
STORED: Final = {"status": "stored", "job_id": 42}
SESSION: Final = {"auth": "on", "role": "viewer", "job_id": None, "flower_url": "http://127.0.0.1:5555"}
MLFLOW_METRICS: Final = {
    "run_id": "1f0c3f9d8f0a4f7c9a8d4f2b6f7e8d9c",
    "metrics": {"loss": [{"ts_ms": 1_790_000_000_123, "step": 1, "value": 2.3}]},
    "more_metrics": 0,
    "next": None,
}
MLFLOW_SUMMARY: Final = {
    "run_id": "1f0c3f9d8f0a4f7c9a8d4f2b6f7e8d9c",
    "url": "http://localhost:5000/#/experiments/1/runs/1f0c3f9d8f0a4f7c9a8d4f2b6f7e8d9c",
    "name": "digits-42",
    "experiment": "trainwire",
    "status": "RUNNING",
    "is_mirror": True,
    "is_deleted": False,
    "started_at": _AT,
    "ended_at": None,
    "params": {"lr": "0.001"},
    "metrics": {"loss": {"points": 2, "last": 0.9, "lowest": 0.9, "highest": 2.3}},
    "more_metrics": 0,
}
HEALTH: Final = {"status": "ok"}
READINESS: Final = {"ready": True, "checks": {"postgres": "ok", "redis": "ok"}}
_NO_DELETION: Final = {
    "job_id": 42,
    "name": "digits",
    "plan": None,
    "deleted_at": None,
    "deleted_by": None,
    "reason": None,
    "finished_at": None,
    "discarded_messages": 0,
    "parts": {},
}
DELETION_PLAN: Final = _NO_DELETION | {
    "state": "planned",
    "plan": {
        "job_id": 42,
        "name": "digits",
        "status": "completed",
        "attempt": 1,
        "created_at": _AT,
        "rows": {"training_logs": 120, "training_metrics": 10},
        "copies": {"loki": 120, "mlflow": 1},
        "mlflow_runs": ["1f0c3f9d8f0a4f7c9a8d4f2b6f7e8d9c"],
        "own_runs": [],
        "files": ["s3://bucket/checkpoints/42/1/best.pt"],
        "file_count": 1,
        "file_bytes": 1_048_576,
        "tokens": 0,
    },
}
DELETION: Final = _NO_DELETION | {
    "state": "deleting",
    "deleted_at": _AT,
    "deleted_by": "gateway, token 3",
    "reason": "personal data",
    "parts": {
        "loki": {
            "state": "requested",
            "planned": 120,
            "deleted": 120,
            "notes": ["Loki hides the lines within minutes"],
        },
        "postgres": {"state": "open", "planned": 130, "deleted": 0, "notes": []},
    },
}
