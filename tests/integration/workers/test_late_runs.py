"""A real trainer that ran while Redis was down, and whose spool is sent after a newer run of its job."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.factories import drain, one, rows
from trainwire.ingest.sending.recovery import send_leftovers
from trainwire.ingest.settings.setting_groups import Timing
from trainwire.schemas.keys import KINDS
from trainwire.schemas.tables import training_attempts, training_jobs, training_logs
from trainwire.stack.persisted_config import free_port
from trainwire.workers.resources import Resources

TRAINER = """
import os, sys, time
ago_ns, now_ns = int(sys.argv[2]) * 10**9, time.time_ns
time.time_ns = lambda: now_ns() - ago_ns
from trainwire import Run
with Run(7, sys.argv[1], params={"run": sys.argv[1]}) as run:
    run.log(sys.argv[1])
    run.metric(epoch=1, loss=float(sys.argv[3]))
    run.checkpoint(f"s3://bucket/{sys.argv[1]}.pt", kind="last")
    if sys.argv[1] == "late":
        raise SystemExit(3)
"""


def train(name: str, redis_url: str, spool: Path, ago_s: int, loss: float) -> None:
    """Run a trainer of job 7 whose clock is `ago_s` seconds behind."""
    env = os.environ | {"REDIS_URL": redis_url, "TRAINWIRE_SPOOL_DIR": str(spool), "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", TRAINER, name, str(ago_s), str(loss)]
    subprocess.run(command, env=env, timeout=180, check=name != "late")


@pytest.mark.parametrize("ago_s", [3600, 0])
def test_a_spool_that_is_sent_late_does_not_replace_the_newer_result(
    resources: Resources, redis_url: str, tmp_path: Path, ago_s: int
) -> None:
    """A run an hour or some seconds before the newer one has an attempt of its own."""
    train("late", f"redis://127.0.0.1:{free_port()}/0", tmp_path / "late", ago_s, 9.0)
    train("newest", redis_url, tmp_path / "newest", 0, 0.5)
    for kind in KINDS:
        drain(resources, kind, 7)
    newest = one(resources.engine, training_jobs, id=7)
    assert newest["status"] == "completed"
    (left,) = send_leftovers(tmp_path / "late", redis_url, Timing(), 10.0, any_server=True)
    assert not any(left.receipt.unsent.values())
    for kind in reversed(KINDS):  # the completions first
        drain(resources, kind, 7)
    job = one(resources.engine, training_jobs, id=7)
    results = ("attempt", "status", "exit_code", "completed_at", "final_metrics", "last_checkpoint_path", "params")
    assert {name: job[name] for name in results} == {name: newest[name] for name in results}
    assert rows(resources.engine, training_attempts, "attempt", "name", "status", order=["attempt"]) == [
        (0, "late", "failed"),
        (1, "newest", "completed"),
    ]
    assert rows(resources.engine, training_logs, "attempt", "content") == [(1, "newest"), (0, "late")]
