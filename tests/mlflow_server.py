"""A real MLflow server on SQLite, in a process of its own, that tests can kill and start again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest
import requests

from tests.processes import wait_until
from trainwire.stores.mlflow.http import MlflowApi, plain_send

START_TIMEOUT_S = 90
"""Half a minute if Python compiles its modules for the first time."""

ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


class MlflowServer:
    """One MLflow server; its data survives `kill` and `start`."""

    def __init__(self, folder: Path, *, backend: str | None = None) -> None:
        self._folder = folder
        self._backend = backend or f"sqlite:///{folder}/mlflow.db"
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    @property
    def is_running(self) -> bool:
        """Return whether it was started and still runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def api(self) -> MlflowApi:
        """Its REST API."""
        return MlflowApi(plain_send(self.url, {}))

    def start(self) -> Self:
        """Start it and wait until it answers."""
        with (self._folder / "mlflow.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *self._arguments()],
                cwd=self._folder,
                env=os.environ | ENVIRONMENT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until(self._answers, "MLflow's start", START_TIMEOUT_S)
        except AssertionError:
            print((self._folder / "mlflow.log").read_text(errors="replace")[-3000:])
            self.kill()
            raise
        return self

    def kill(self) -> None:
        """SIGKILL it and all processes that it started."""
        if self._process is not None:
            with suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
            self._process = None

    def _arguments(self) -> list[str]:
        store = ["--backend-store-uri", self._backend, "--default-artifact-root", str(self._folder / "artifacts")]
        return [*store, "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "MLflow ended"
        with socket.socket() as probe:  # a request that is refused takes much more CPU time
            if probe.connect_ex(("127.0.0.1", self.port)) != 0:
                return False
        try:
            return requests.get(f"{self.url}/health", timeout=1).ok
        except requests.RequestException:
            return False


@pytest.fixture(scope="session")
def _mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    yield server
    server.kill()


@pytest.fixture
def mlflow_server(_mlflow_server: MlflowServer) -> MlflowServer:
    """The MLflow server of this test process, running; each test uses an experiment of its own."""
    return _mlflow_server if _mlflow_server.is_running else _mlflow_server.start()
