"""What `import ingest` costs and brings, seen from fresh processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def python(script: str, *folders: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in a new interpreter that sees `folders` first, then this checkout."""
    path = os.pathsep.join(map(str, [*folders, ROOT]))
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_run_imports_nothing_of_the_workers() -> None:
    """Even a run that sends and names a checkpoint has loaded no SQLAlchemy, Celery, kombu, mlflow or boto3."""
    done = python(
        "import sys, ingest\n"
        "run = ingest.Run(1, redis_url='redis://127.0.0.1:1/0')\n"
        "run.log('a')\n"
        "run.checkpoint('last.pt')\n"
        "run.finish(timeout_s=1)\n"
        "import ingest.link, ingest.leftovers, ingest.launch\n"
        "heavy = {'sqlalchemy', 'celery', 'kombu', 'pydantic', 'mlflow', 'psycopg', 'boto3', 'schemas.tables'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_import_leaves_redis_for_later() -> None:
    """The slow library is imported by the sender's thread, not by the trainer's start."""
    done = python("import sys, ingest; print(sorted({'redis'} & set(sys.modules)))")
    assert done.stdout.strip() == "[]", done.stderr


def test_the_import_is_quick() -> None:
    """It takes at most four times the processor time of `import asyncio`, which was 2.4 times on 2026-11-25."""
    script = "import time; t = time.process_time(); import {}; print(time.process_time() - t)"
    ours, asyncio = (
        min(float(python(script.format(module)).stdout) for _ in range(5)) for module in ("ingest", "asyncio")
    )
    assert ours < 4 * asyncio


@pytest.mark.parametrize("name", ["schemas.py", "schemas/__init__.py"])
def test_a_foreign_schemas_is_named(tmp_path: Path, name: str) -> None:
    """A module or package named schemas that hides ours gives one sentence with file and remedy."""
    foreign = tmp_path / name
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("raise RuntimeError('never run')\n")
    done = python("import ingest", tmp_path)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: trainwire needs its own package 'schemas' but Python finds {foreign}")
    assert "rename that one, or put trainwire's folder" in last


def test_a_plain_folder_named_schemas_does_no_harm(tmp_path: Path) -> None:
    """A folder without __init__.py hides nothing: Python prefers a regular package further down the path."""
    (tmp_path / "schemas").mkdir()
    assert python("import ingest", tmp_path).returncode == 0


def test_a_foreign_schemas_that_is_loaded_already_is_named(tmp_path: Path) -> None:
    """It makes no difference whether the other package was imported before."""
    (tmp_path / "schemas.py").write_text("a = 1\n")
    done = python("import schemas, ingest", tmp_path)
    assert str(tmp_path / "schemas.py") in done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("script", "status", "message"),
    [
        ("", "completed", "None"),
        ("raise RuntimeError('boom')", "failed", "RuntimeError: boom"),
    ],
)
def test_an_unfinished_run_is_finished_at_exit(script: str, status: str, message: str) -> None:
    """A script that never calls finish still says how it ended, within the deadline."""
    done = python(
        "import ingest, ingest.run, ingest.session\n"
        "ingest.run.DEFAULT_TIMEOUT_S = 0.1\n"
        "original = ingest.session.Session.finish\n"
        "def finish(self, completion, timeout_s):\n"
        "    end = completion()\n"
        "    print(end.status, end.error_message)\n"
        "    return original(self, completion, timeout_s)\n"
        "ingest.session.Session.finish = finish\n"
        "run = ingest.Run(1, redis_url='redis://127.0.0.1:1/0')\n" + script
    )
    assert done.stdout.strip() == f"{status} {message}"
