"""The import time and the imported modules of `from trainwire import Run`, in fresh processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import trainwire

ROOT = Path(__file__).parents[3]


def python(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a new interpreter that sees this checkout."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_run_imports_nothing_of_the_workers() -> None:
    """Even a run that sends and names a checkpoint has loaded no SQLAlchemy, Celery, kombu, mlflow or boto3."""
    done = python(
        "import sys, trainwire\n"
        "run = trainwire.Run(1, redis_url='redis://127.0.0.1:1/0')\n"
        "run.log('a')\n"
        "run.checkpoint('s3://bucket/last.pt')\n"
        "run.finish(timeout_s=1)\n"
        "import trainwire.ingest.sending.transports.redis_connection, trainwire.ingest.sending.recovery\n"
        "import trainwire.ingest.launcher.launch\n"
        "heavy = {'sqlalchemy', 'celery', 'kombu', 'pydantic', 'mlflow', 'psycopg', 'boto3',"
        " 'trainwire.schemas.tables'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_import_leaves_redis_for_later() -> None:
    """The slow libraries are imported by the sender's thread, not by the trainer's start."""
    slow = "{'redis', 'http.client', 'urllib.request', 'ssl'}"
    done = python(f"import sys; from trainwire import Run; print(sorted({slow} & set(sys.modules)))")
    assert done.stdout.strip() == "[]", done.stderr


def test_the_import_is_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled, it takes at most three times the processor time of `import asyncio` (1.6 on 2026-11-30).

    pip compiles the modules of a package that it installs; the first run of a checkout would measure the compiler.
    """
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path))
    script = "import time; t = time.process_time(); {}; print(time.process_time() - t)"
    ours, asyncio = (
        min(float(python(script.format(statement)).stdout) for _ in range(5))
        for statement in ("from trainwire import Run", "import asyncio")
    )
    assert ours < 3 * asyncio


def test_the_import_leaves_rare_parts_for_later() -> None:
    """Uploads and sampling are loaded by the runs that need them."""
    done = python("import sys; from trainwire import Run; print(*sorted(sys.modules))")
    loaded = set(done.stdout.split())
    ours = {"trainwire.ingest.uploads.uploads", "trainwire.ingest.lines.sampling"}
    assert not {*ours, "shutil", "tempfile"} & loaded, done.stderr


def test_the_package_loads_its_parts_when_they_are_asked_for() -> None:
    """`import trainwire` loads nothing else of ours, a name of the SDK loads no test double and no integration."""
    done = python(
        "import sys, trainwire\n"
        "print(sorted(name for name in sys.modules if name.startswith('trainwire.')))\n"
        "from trainwire import Run\n"
        "print(sorted({'trainwire.testing', 'trainwire.integrations', 'trainwire.cli'} & set(sys.modules)))\n"
    )
    assert done.stdout.split() == ["[]", "[]"], done.stderr


@pytest.mark.parametrize("name", trainwire.__all__)
def test_every_public_name_is_there(name: str) -> None:
    """All names of `__all__` can be imported from the package, and `dir` lists them."""
    assert getattr(trainwire, name).__name__ == name
    assert name in dir(trainwire)


def test_a_name_that_does_not_exist_is_an_import_error() -> None:
    """A typing error fails at the import, as with any package."""
    assert "cannot import name 'Runn' from 'trainwire'" in python("from trainwire import Runn").stderr


@pytest.mark.parametrize(
    ("script", "status", "message"),
    [
        ("", "completed", "None"),
        ("raise RuntimeError('boom')", "failed", "RuntimeError: boom"),
    ],
)
def test_an_unfinished_run_is_finished_at_exit(script: str, status: str, message: str) -> None:
    """A script that never calls finish still sends its completion, within the deadline."""
    done = python(
        "import trainwire.ingest.run, trainwire.ingest.sending.session\n"
        "trainwire.ingest.sending.session.DEFAULT_TIMEOUT_S = 0.1\n"
        "original = trainwire.ingest.sending.session.Session.finish\n"
        "def finish(self, completion, timeout_s, provenance_sent):\n"
        "    end = completion()\n"
        "    print(end.status, end.error_message)\n"
        "    return original(self, completion, timeout_s, provenance_sent)\n"
        "trainwire.ingest.sending.session.Session.finish = finish\n"
        "run = trainwire.Run(1, redis_url='redis://127.0.0.1:1/0')\n" + script
    )
    assert done.stdout.strip() == f"{status} {message}"
