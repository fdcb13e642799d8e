"""A launcher in a Slurm job that gets SIGTERM and is requeued, with real workers and the gateway's filters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.factories import one, rows
from tests.processes import ROOT, wait_until, workers_running
from trainwire.schemas.tables import training_attempts, training_jobs, training_logs
from trainwire.workers.resources import Resources

TRAINING = """
import signal, sys, time
from pathlib import Path
from trainwire import Run

saved = Path(sys.argv[1])
run = Run(total_epochs=2)
print("requeued" if saved.exists() else "first", flush=True)

def save(*_):
    saved.touch()
    print("saved", flush=True)
    sys.exit(1)

if not saved.exists():
    signal.signal(signal.SIGTERM, save)
    run.metric(epoch=1, loss=0.5)
    print("training", flush=True)
    time.sleep(600)
"""


def test_a_preempted_job_is_requeued(resources: Resources, tmp_path: Path) -> None:
    """SIGTERM of the scheduler ends attempt 1 as `preempted`, and the requeued start is attempt 2 of the job."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("TRAINWIRE_")} | {
        "REDIS_URL": resources.settings.redis_url.get_secret_value(),
        "DATABASE_URL": resources.settings.database_url.get_secret_value(),
        "TRAINWIRE_SPOOL_DIR": str(tmp_path / "spool"),
        "TRAINWIRE_JOB_ID": "42",
        "SLURM_JOB_ID": "812",
    }
    (tmp_path / "train.py").write_text(TRAINING)
    command = [sys.executable, "-m", "trainwire.ingest", "--", sys.executable, str(tmp_path / "train.py")]
    command.append(str(tmp_path / "saved"))
    with workers_running(resources.settings, tmp_path):
        with subprocess.Popen(command, cwd=ROOT, env=env) as launcher:
            try:
                wait_until(lambda: "training" in printed(resources), "the first attempt trains", 120)
                launcher.terminate()
                assert launcher.wait(120) == 1
            finally:
                launcher.kill()
        wait_until(lambda: job(resources)["exit_code"] == 1, "the launcher's completion", 120)
        assert (job(resources)["status"], job(resources)["error_message"]) == (
            "preempted",
            "SIGTERM in Slurm job 812: exit code 1",
        )
        assert listed(env, "status = preempted") == listed(env, "status != failed") == [42]
        status = [sys.executable, "-m", "trainwire", "status", "42"]
        shown = subprocess.run(status, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
        assert "status          preempted, attempt 1" in shown
        assert "error           SIGTERM in Slurm job 812: exit code 1" in shown
        requeued = subprocess.run(command, cwd=ROOT, env=env | {"SLURM_RESTART_COUNT": "1"}, check=False)
        assert requeued.returncode == 0
        wait_until(lambda: job(resources)["status"] == "completed", "the end of the second attempt", 120)
        wait_until(lambda: "requeued" in printed(resources), "its line", 120)
    assert job(resources)["attempt"] == 2
    attempts = dict(rows(resources.engine, training_attempts, "attempt", "status", order=["attempt"]))
    assert attempts == {1: "preempted", 2: "completed"}
    assert printed(resources) == ["first", "training", "saved", "requeued"]


def job(resources: Resources) -> dict[str, object]:
    """Return the row of the job."""
    return dict(one(resources.engine, training_jobs, id=42))


def printed(resources: Resources) -> list[str]:
    """Return the logged lines of stdout."""
    found = rows(resources.engine, training_logs, "seq", "content", "log_type")
    return [str(content) for _, content, log_type in sorted(found) if log_type == "stdout"]


def listed(env: dict[str, str], where: str) -> list[int]:
    """Return the numbers of the jobs that `trainwire jobs` lists with this filter."""
    command = [sys.executable, "-m", "trainwire", "jobs", "--json", "--filter", where]
    shown = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
    return [found["id"] for found in json.loads(shown)]
