"""Examples in the OpenAPI document, by the name of their type: a training in the middle of its epochs."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from trainwire.gateway.documents.job_types import AttemptItem, JobDetail, JobItem
from trainwire.gateway.documents.response_types import DeletionReport

_AT: Final = "2026-09-21T14:13:20.123456Z"
_TS: Final = 1_790_000_000_123_456_000
_RUN_ID: Final = "1f0c3f9d8f0a4f7c9a8d4f2b6f7e8d9c"


def _example(document: type[msgspec.Struct], values: dict[str, Any]) -> dict[str, Any]:
    """Build an example of a document; fields without a value get their default, or null."""
    defaults: dict[str, Any] = {}
    for field in msgspec.structs.fields(document):
        default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        if default is not msgspec.UNSET:
            defaults[field.encode_name] = None if default is msgspec.NODEFAULT else default
    return defaults | values


_JOB: Final[dict[str, Any]] = {
    "id": 42,
    "name": "digits",
    "status": "running",
    "attempt": 1,
    "created_at": _AT,
    "started_at": _AT,
    "last_seen_at": _AT,
    "current_epoch": 3,
    "total_epochs": 10,
    "progress_percent": 30.0,
    "best_checkpoint_path": "s3://models/42/best.pt",
    "last_checkpoint_path": "s3://models/42/epoch-3.pt",
    "rows": {"logs": 120, "metrics": 45, "checkpoints": 3},
    "last_metrics": {"loss": 0.31, "accuracy": 0.9, "grad_norm": "NaN"},
    "sparkline": {"name": "loss", "values": [2.3, 0.9, 0.31]},
}
_DETAIL: Final[dict[str, Any]] = {
    "params": {"lr": 0.001},
    "attempts": [_example(AttemptItem, {"attempt": 1, "status": "running", "started_at": _AT})],
    "metric_names": ["accuracy", "grad_norm", "loss"],
    "metric_names_complete": True,
    "results_complete": True,
    "last_by_rank": {"loss": {"0": 0.31, "1": 0.33}},
    "metric_ranks": 2,
    "forks": [43],
    "last_checkpoint": "s3://models/42/epoch-3.pt",
    "removed_rows": {"logs": 0, "metrics": 0},
}
_LINE: Final = {"seq": 119, "attempt": 1, "ts": _TS, "log_type": "stdout", "text": "epoch 3"}
_WARNING: Final = {"seq": 120, "log_type": "stderr", "text": "slow disk", "level": "WARNING", "ts": _TS + 1000}
_POINTS: Final = [[1, _TS, 2.3, 1, 1], [2, _TS, 0.9, 1, 2]]
_CHECKPOINT: Final = {
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
_DELIVERY: Final = {
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
    "delivery": {
        "job_id": 42,
        "rows_behind": 2,
        "oldest_age_s": 0.3,
        "confirmed_seq": 118,
        "last_seq": 120,
        "attempts": 0,
        "last_error": None,
        "dead_lettered": 0,
        "next_attempt_at": None,
        "own_run_id": None,
        "note": None,
    },
    "health": {
        "sink": "loki",
        "answers": True,
        "down_since": None,
        "next_attempt_at": None,
        "attempts": 0,
        "last_error": None,
    },
}
_LOKI_NOTES: Final = ["Loki hides the lines within minutes"]
_DELETION: Final[dict[str, Any]] = {
    "job_id": 42,
    "name": "digits",
    "state": "deleting",
    "deleted_at": _AT,
    "deleted_by": "gateway, token 3",
    "reason": "personal data",
    "discarded_messages": 0,
    "parts": {
        "loki": {"state": "requested", "planned": 120, "deleted": 120, "notes": _LOKI_NOTES},
        "postgres": {"state": "open", "planned": 130, "deleted": 0, "notes": []},
    },
}
_ALERT: Final[dict[str, Any]] = {
    "id": 7,
    "rule": "failed or lost",
    "destination": "team",
    "state": "sent",
    "level": "error",
    "job_id": 42,
    "attempt": 1,
    "title": "Job 42 (digits) failed",
    "content": "CUDA out of memory",
    "occurred_at": _AT,
    "created_at": _AT,
    "ended_at": _AT,
    "attempts": 1,
    "last_error": None,
}
_OUTAGE: Final = {
    "destination": "ops",
    "waiting": 3,
    "down_since": _AT,
    "next_attempt_at": _AT,
    "attempts": 4,
    "last_error": "the webhook answered 503",
}
EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "Accepted": {"status": "accepted", "job_id": 42},
    "AlertEntry": _ALERT,
    "AlertPage": {"items": [_ALERT], "next": None, "outages": [_OUTAGE]},
    "CheckpointPage": {"items": [_CHECKPOINT]},
    "StopReceipt": {
        "job_id": 42,
        "attempt": 1,
        "requested_at": _AT,
        "requested_by": "anna",
        "reason": "the loss is NaN",
    },
    "Comparison": {
        "jobs": [_example(JobItem, _JOB)],
        "series": [{"job_id": 42, "name": "loss", "attempt": 1, "rank": None, "points": _POINTS}],
        "next": None,
        "complete": True,
    },
    "CompletenessReport": {
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
        "shared_ranks": [],
    },
    "DeletionReport": _example(DeletionReport, _DELETION),
    "Deliveries": {"items": [_DELIVERY]},
    "JobGroups": {"items": [{"value": "vision", "jobs": 12, "running": 1, "failed": 2}], "complete": True},
    "FieldNames": {"jobs": ["id", "name"], "params": ["lr"], "tags": ["dataset"], "metrics": ["loss"]},
    "Health": {"status": "ok"},
    "JobDetail": _example(JobDetail, _JOB | _DETAIL),
    "JobItem": _example(JobItem, _JOB),
    "JobReferences": {
        "items": [{"id": 42, "name": "digits", "status": "running", "started_at": _AT}],
        "total": 1,
        "also_named": None,
    },
    "JobPage": {
        "items": [_example(JobItem, _JOB)],
        "next": "MjAyNi0wOS0yMVQxNDoxMzoyMC4xMjM0NTYrMDA6MDB8NDI",
    },
    "Loan": {"url": "https://models.s3.amazonaws.com/42/best.pt?X-Amz-Signature=0", "expires_at": _AT},
    "LogPage": {
        "items": [_LINE, _LINE | _WARNING],
        "first_seq": 119,
        "last_seq": 120,
        "total": 120,
        "scanned": None,
    },
    "MetricPage": {
        "series": [{"name": "loss", "attempt": 1, "rank": None, "points": _POINTS}],
        "last_seq": 45,
        "downsampled": False,
    },
    "MlflowMetrics": {
        "run_id": _RUN_ID,
        "metrics": {"loss": [{"ts_ms": 1_790_000_000_123, "step": 1, "value": 2.3}]},
        "more_metrics": 0,
        "next": None,
    },
    "MlflowSummary": {
        "run_id": _RUN_ID,
        "url": f"http://localhost:5000/#/experiments/1/runs/{_RUN_ID}",
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
    },
    "PointPage": {
        "items": [
            {
                "seq": 45,
                "attempt": 1,
                "rank": None,
                "epoch": 3,
                "step": 45,
                "logged_at": _AT,
                "checkpoint_path": None,
                "values": {"loss": 0.31, "grad_norm": "NaN"},
            }
        ],
        "next": 45,
    },
    "NamePage": {"items": ["accuracy", "grad_norm", "loss"], "next": None, "complete": True},
    "Provenance": {
        "attempt": 1,
        "items": {
            "command": ["python", "train.py", "--lr", "0.001", "--api-key", "***"],
            "folder": "/home/ada/digits",
            "git": {"commit": "7bea80b22ac2e7ea8d53cf7b1f35bea11261839c", "branch": "main", "changed_files": 1},
            "python": {"version": "3.12.8", "implementation": "CPython", "executable": "/usr/bin/python3"},
            "gpu": [{"name": "NVIDIA H100 80GB HBM3", "driver": "550.54.15", "memory": "81559 MiB"}],
        },
    },
    "Readiness": {"ready": True, "checks": {"postgres": "ok", "redis": "ok"}},
    "SessionState": {"auth": "on", "role": "viewer", "job_id": None, "flower_url": "http://127.0.0.1:5555"},
    "Stored": {"status": "stored", "job_id": 42},
}
