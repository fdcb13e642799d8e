"""The wire format of docs/wire-format.md: a bare XADD of flat fields with JSON, without our code."""

from __future__ import annotations

import json

from tests.factories import drain, one, rows
from trainwire.schemas.tables import (
    source_positions,
    training_checkpoints,
    training_jobs,
    training_logs,
    training_metrics,
)
from trainwire.workers.resources import Resources

T = 1_790_000_000_000_000_000


def test_a_client_in_any_language_is_one_xadd(resources: Resources) -> None:
    """Messages of four kinds, published by a raw Redis client as JSON, are stored in all tables, complete."""
    job = 6

    def publish(kind: str, seq: int, body: dict[str, object]) -> None:
        resources.redis.xadd(
            f"ingest:{{{job % 4}}}:{kind}",
            {
                "v": "1",
                "job": "6",
                "attempt": "0",
                "source": "julia-1",
                "seq": str(seq),
                "enc": "json",
                "body": json.dumps(body),
            },
        )

    publish(
        "metrics",
        1,
        {
            "name": "from julia",
            "params": {"lr": 0.1},
            "ts": T,
            "progress": {"status": "running", "total_epochs": 2},
        },
    )
    publish("logs", 1, {"log_type": "stdout", "lines": ["one", "two"], "ts": [T, T + 1], "levels": ["INFO", None]})
    publish("logs", 2, {"log_type": "stderr", "lines": ["three"], "ts": [T + 2], "rank": 3})
    publish(
        "metrics",
        2,
        {
            "points": [{"ts": T, "epoch": 2, "step": 20, "values": {"loss": "NaN", "acc": 0.5, "f1": 1}}],
            "progress": {"current_epoch": 2},
        },
    )
    publish(
        "checkpoints",
        1,
        {
            "ts": T,
            "kind": "best",
            "uri": "s3://b/k.pt",
            "epoch": 2,
            "size_bytes": 5,
            "sha256": "ab",
            "store_checksum": "c3Q=-2",
            "upload_error": "disk full",
            "metrics": {"acc": 0.5},
        },
    )
    publish(
        "completions",
        1,
        {
            "ts": T + 9,
            "status": "completed",
            "exit_code": 0,
            "final_metrics": {"accuracy": 0.5},
            "produced": {"logs": 2, "metrics": 2, "checkpoints": 1, "completions": 1},
        },
    )
    for kind in ("completions", "logs", "metrics", "checkpoints"):
        drain(resources, kind, job=job)

    found = one(resources.engine, training_jobs, id=job)
    assert (found["name"], found["status"], found["attempt"], found["exit_code"]) == (
        "from julia",
        "completed",
        1,
        0,
    )
    assert (found["final_accuracy"], found["progress_percent"], found["params"]) == (0.5, 100.0, {"lr": 0.1})
    assert rows(resources.engine, training_logs, "seq", "log_type", "content", "level", "rank") == [
        (1, "stdout", "one", "INFO", None),
        (2, "stdout", "two", None, None),
        (3, "stderr", "three", None, 3),
    ]
    point = one(resources.engine, training_metrics, job_id=job)
    assert (point["epoch"], point["step"], point["accuracy"], point["extra_metrics"]) == (2, 20, 0.5, {"f1": 1.0})
    saved = one(resources.engine, training_checkpoints, job_id=job)
    assert (saved["uri"], saved["sha256"], saved["store_checksum"], saved["upload_error"]) == (
        "s3://b/k.pt",
        "ab",
        "c3Q=-2",
        "disk full",
    )
    positions = rows(resources.engine, source_positions, "kind", "last_seq", "produced", "missing", order=["kind"])
    assert positions == [
        ("checkpoints", 1, 1, []),
        ("completions", 1, 1, []),
        ("logs", 2, 2, []),
        ("metrics", 2, 2, []),
    ]
    acks = resources.redis.hgetall("ingest:acks:6")
    assert acks == {
        b"julia-1:logs": b"2",
        b"julia-1:metrics": b"2",
        b"julia-1:checkpoints": b"1",
        b"julia-1:completions": b"1",
    }
