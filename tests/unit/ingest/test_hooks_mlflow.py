"""Trainings that log to MLflow, under the launcher's hooks: compared with MLflow's own SQLite store."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from trainwire.ingest.hooks.caught import Caught
from trainwire.ingest.hooks.listener import HookListener
from trainwire.testing import RecordedRun

OPERATIONS = Path(__file__).with_name("mlflow_operations.py")
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"}


class Training:
    """A script that ran with the hooks in its Python, and what the job has of it."""

    def __init__(self, script: str, folder: Path, environ: dict[str, str]) -> None:
        self.run = RecordedRun(42)
        self.caught = Caught(self.run, lambda _: self.run)
        listener = HookListener(folder, self.caught)
        base = {
            name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "MLFLOW_TRACKING_URI"}
        }
        command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)]
        try:
            self.output = subprocess.run(
                command,
                cwd=folder,
                env={**base, **QUIET, **listener.environment({}), **environ},
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                timeout=240,
            ).stdout
        finally:
            listener.close(10)

    def values(self) -> dict[tuple[str, int], float]:
        """Return the stored values, by name and step."""
        return {
            (name, point.step or 0): value for point in self.run.points for name, value in point.values.items()
        }


def train(script: str, folder: Path, **environ: str) -> Training:
    """Run a script with the hooks, in a folder of its own."""
    return Training(script, folder, environ)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return the results of all operations with trainwire's store and with MLflow's, and the metrics caught."""
    script = OPERATIONS.read_text()
    ours = train(script, tmp_path_factory.mktemp("ours"))
    theirs = train(script, tmp_path_factory.mktemp("theirs"), MLFLOW_TRACKING_URI="sqlite:///mlflow.db")
    assert not theirs.run.points
    return [json.loads(ours.output), json.loads(theirs.output)]


NAMES = re.findall(r"^@operation\ndef (\w+)", OPERATIONS.read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_an_operation_is_that_of_mlflows_own_store(name: str, stores: list[dict[str, Any]]) -> None:
    """Each operation of the client has the result, or the error, that it has with MLflow's SQLite store."""
    ours, theirs = stores
    assert ours[name] == theirs[name]
