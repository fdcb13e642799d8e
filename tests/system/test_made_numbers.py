"""Trainings without a job number, with real workers: each launch is a job of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.factories import rows
from tests.processes import ROOT, wait_until, workers_running
from trainwire.schemas.tables import training_attempts, training_jobs, training_logs
from trainwire.workers.resources import Resources

TRAINER = """
import os, subprocess, sys
from trainwire import Run
with Run(name="digits") as run:
    run.log("line of the first process")
    if len(sys.argv) == 1:
        subprocess.run([sys.executable, __file__, "child"], check=True)
"""


def test_two_processes_of_one_launch_are_one_job(resources: Resources, tmp_path: Path) -> None:
    """A script and its child process are one job with one end, with and without a launcher."""
    script = tmp_path / "train.py"
    script.write_text(TRAINER)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TRAINWIRE_")}
    own = {"REDIS_URL": resources.settings.redis_url.get_secret_value(), "PYTHONPATH": str(ROOT)}
    spool = {"TRAINWIRE_SPOOL_DIR": str(tmp_path / "spool")}
    launcher = [sys.executable, "-m", "trainwire.ingest", "--"]
    with workers_running(resources.settings, tmp_path):
        for command in ([], [], launcher):
            subprocess.run(
                [*command, sys.executable, str(script)],
                env={**clean, **own, **spool},
                check=True,
                cwd=tmp_path,
            )

        def statuses() -> list[tuple[object, ...]]:
            return rows(resources.engine, training_jobs, "name", "status", "attempt", order=["created_at"])

        def lines() -> list[int]:
            return rows(resources.engine, training_logs, "job_id", order=["job_id", "seq"])

        wait_until(lambda: [row[1] for row in statuses()] == ["completed"] * 3, "three jobs that have ended")
        wait_until(lambda: len(lines()) == 6, "all lines: each kind of messages has its own stream")
    assert statuses() == [("digits", "completed", 1)] * 3
    ids = set(rows(resources.engine, training_jobs, "id", order=["id"]))
    assert min(ids) > 2**46
    assert {job_id: lines().count(job_id) for job_id in ids} == dict.fromkeys(ids, 2)
    recorded = rows(resources.engine, training_attempts, "provenance", order=["job_id"])
    assert [items["command"][-1] for items in recorded] == [str(script)] * 3
