"""Real MLflow servers on SQLite, in processes of their own: one for all tests of a run, and others to kill.

The start of one takes eight seconds of CPU time.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest
import requests

from tests.orphans import of_the_whole_run
from tests.processes import END_S, wait_until
from trainwire.stack.persisted_config import free_port
from trainwire.stores.mlflow.http import MlflowApi, plain_send

START_TIMEOUT_S = 90
"""Half a minute if Python compiles its modules for the first time."""

ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


class MlflowServer:
    """One MLflow server; its data survives `kill` and `start`."""

    def __init__(
        self,
        folder: Path,
        *,
        backend: str | None = None,
        port: int | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._folder = folder
        self._backend = backend or f"sqlite:///{folder}/mlflow.db"
        self._process: subprocess.Popen[bytes] | None = None
        self._env = env or {}
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"

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
                env={**os.environ, **ENVIRONMENT, **self._env},
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
            self._process.wait(END_S)
            self._process = None

    def leave(self) -> None:
        """Let it run on after this process."""
        if self._process is not None:
            self._process.returncode = 0  # `Popen` warns of a process that is still running
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
            return requests.get(f"{self.url}/health", timeout=20).ok
        except requests.RequestException:
            return False


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> MlflowServer:
    """The MLflow server of all test processes, which ends with them; each test uses its own experiment."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "mlflow-of-all"
    folder.mkdir(exist_ok=True)
    address = folder / "port"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # held by the process that starts it, until it answers
        if address.exists():
            return MlflowServer(folder, port=int(address.read_text()))
        server = MlflowServer(folder, env=of_the_whole_run()).start()
        server.leave()
        address.write_text(str(server.port))
    return server
