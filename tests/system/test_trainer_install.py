"""What a trainer's machine gets: the small set of packages, alone, is enough to publish."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

import pytest
import redis

from tests.processes import ROOT

SCRIPT = """
import sys
from ingest import Run
with Run(job_id=42, redis_url=sys.argv[1]) as run:
    run.log("from a bare install")
    run.metric(epoch=1, loss=0.5)
    run.checkpoint(sys.executable)
heavy = {"sqlalchemy", "celery", "kombu", "pydantic", "mlflow", "alembic", "typer", "boto3"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.timeout(180)
def test_the_small_set_is_enough(client: redis.Redis, redis_url: str, tmp_path: Path) -> None:
    """With the base dependencies only, a run publishes, and `trainwire` names what it lacks."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), str(ROOT)], check=True, cwd=tmp_path)
    installed = subprocess.run(
        [str(python), "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.lower()
    assert not [
        name
        for name in ("sqlalchemy", "celery", "kombu", "packaging", "pydantic", "typer")
        if f"{name}==" in installed
    ]

    done = subprocess.run(
        [str(python), "-c", SCRIPT, redis_url], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert client.xlen("ingest:{2}:logs") == 1
    assert client.xlen("ingest:{2}:completions") == 1
    assert client.xlen("ingest:{2}:checkpoints") == 1

    told = subprocess.run(
        [str(tmp_path / "venv" / "bin" / "trainwire"), "jobs"], capture_output=True, text=True, check=False
    )
    assert told.returncode == 2
    assert "python -m ingest" in told.stderr
