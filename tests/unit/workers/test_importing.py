"""Imports that processes make only when they need them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "module",
    [
        "trainwire.workers.sinks.mlflow.plugin",
        "trainwire.workers.sinks.mlflow.links",
        "trainwire.workers.drain.drain",
        "trainwire.cli.commands.jobs.mlflow",
    ],
)
def test_mlflows_client_is_imported_by_deliveries_alone(module: str) -> None:
    """Drains and commands do not import MLflow's client, which takes seconds and 100 MB."""
    code = f"import {module}, sys; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=60).returncode == 0
