"""Hosts for system tests: a worker, a beat and a gateway in one process group, which is killed as a whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

from tests.integration.gateway.feed_clients import GatewayAddress
from tests.processes import END_S, ROOT, START_TIMEOUT_S, server_variables, wait_until
from trainwire.stack.persisted_config import free_port
from trainwire.workers.settings import Settings


class Host:
    """The processes of one machine; its gateway keeps its port when the host is started again."""

    def __init__(self, name: str, folder: Path, settings: Settings, **env: str) -> None:
        self.name = name
        self.gateway = GatewayAddress(free_port())
        self._folder = folder
        self._env = os.environ | {
            **server_variables(settings),
            "GATEWAY_PORT": str(self.gateway.port),
            "GATEWAY_REQUESTS_PER_S": "1000",
            "PYTHONWARNINGS": "ignore",  # Celery warns about root
            **env,
        }
        self._life = 0
        self._processes: list[subprocess.Popen[bytes]] = []

    def launch(self) -> None:
        """Start everything."""
        self._life += 1
        leader = self._run("worker", 0, "trainwire.workers", "worker", "--name", self.name)
        self._processes = [leader]
        self._processes.append(self._run("beat", leader.pid, "trainwire.workers", "beat"))
        self._processes.append(self._run("gateway", leader.pid, "trainwire.gateway"))

    def await_ready(self) -> None:
        """Wait until the worker takes orders and the gateway answers."""
        wait_until(lambda: " ready." in self._output("worker"), f"the worker of {self.name}", START_TIMEOUT_S)
        wait_until(self._answers, f"the gateway of {self.name}", START_TIMEOUT_S)

    @property
    def has_active_beat(self) -> bool:
        """Return whether its beat has logged, since the last start, that it is the active one."""
        return "beat.active" in self._output("beat")

    def kill(self) -> None:
        """SIGKILL all processes at once, as a power failure would."""
        os.killpg(self._processes[0].pid, signal.SIGKILL)
        for process in self._processes:
            process.wait(END_S)
        self._processes = []

    def stop(self) -> None:
        """Stop all processes, and kill those that do not stop in time."""
        for process in self._processes:
            process.terminate()
        try:
            for process in self._processes:
                process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def output_tails(self) -> str:
        """Return the ends of the output of its processes since the last start."""
        return "\n".join(f"--- {self.name} {part}\n{self._output(part)[-3000:]}" for part in PARTS)

    def _run(self, part: str, group: int, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        with self._log(part).open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=ROOT,
                env=self._env,
                stdout=log,
                stderr=log,
                process_group=group,
            )

    def _log(self, part: str) -> Path:
        return self._folder / f"{self.name}-{part}-{self._life}.log"

    def _output(self, part: str) -> str:
        return self._log(part).read_text(errors="replace")

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.gateway.url}/healthz", timeout=20):
                return True
        except OSError:
            return False


PARTS = ("worker", "beat", "gateway")
