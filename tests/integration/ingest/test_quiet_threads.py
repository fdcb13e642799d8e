"""A training with a root logger at DEBUG: it sees its own records, and none that our threads cause."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.processes import ROOT
from trainwire import TrainerSettings

SCRIPT = """
import logging, os, time
logging.basicConfig(level=logging.DEBUG, format="%(threadName)s %(name)s %(levelname)s %(message)s")
from trainwire import Run
run = Run(42)
run.capture_output()
logging.getLogger("mine").debug("of the training")
for number in range(5):
    run.log("line")
    time.sleep(0.2)
if "CHECKPOINT" in os.environ:
    run.checkpoint(os.environ["CHECKPOINT"])
run.finish(timeout_s=120)
"""
OWN_USE = """
import boto3
boto3.session.Session().client("s3")
"""
OURS = "MainThread mine DEBUG of the training"


def ended(script: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script to its end."""
    process = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TRAINWIRE_SETTLE_S": "0.5", **env},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process


def test_nothing_of_redis_is_shown_or_logged(valkey: Any) -> None:
    """The client's debugging is neither on stderr nor among the lines of the run."""
    process = ended(SCRIPT, REDIS_URL=valkey.url)
    assert process.stderr.splitlines() == [OURS]
    assert valkey.lines("stderr") == [OURS]


def test_nothing_of_an_outage_but_its_warning_is_shown() -> None:
    """Failures to connect have tracebacks of ours at DEBUG, which the training did not ask for."""
    process = ended(SCRIPT.replace("timeout_s=120", "timeout_s=1"), REDIS_URL="redis://127.0.0.1:1/0")
    names = [line.split()[1:3] for line in process.stderr.splitlines()]
    assert ["mine", "DEBUG"] in names
    assert {tuple(name) for name in names} == {("mine", "DEBUG"), ("trainwire.ingest", "WARNING")}


def test_nothing_of_an_upload_is_shown(uploading: TrainerSettings, bucket: Any, tmp_path: Path) -> None:
    """Neither of botocore nor of urllib3; where the training uses them itself, they log as before."""
    checkpoint = tmp_path / "last.pt"
    checkpoint.write_bytes(b"12345")
    env = {"REDIS_URL": uploading.redis_url, "TRAINWIRE_CHECKPOINT_BUCKET": bucket.name}
    process = ended(SCRIPT + OWN_USE, CHECKPOINT=str(checkpoint), **env)
    assert len(bucket.keys()) == 1
    threads = {line.split()[0] for line in process.stderr.splitlines()}
    assert threads == {"MainThread"}
    assert "MainThread botocore.hooks DEBUG" in process.stderr
