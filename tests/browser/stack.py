"""A stack of the browser tests, started by `trainwire up`, and trainings under it."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import psutil

from tests.processes import wait_until
from trainwire.stack.persisted_config import free_port

READY = "Ctrl-C stops it."
PATIENCE_S = 60


class Stack:
    """`trainwire up` in a folder of its own, and its gateway."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.data_dir = home / "data" / "trainwire"
        self._output_path = home / "up.txt"
        kept = {name: value for name, value in os.environ.items() if not name.endswith("_URL")}
        kept.pop("TRAINWIRE_DATA_DIR", None)
        self._env = kept | {
            "XDG_DATA_HOME": str(home / "data"),
            "XDG_STATE_HOME": str(home / "state"),
            "TRAINWIRE_SPOOL_DIR": str(home / "spool"),
            "LOKI_ENABLED": "false",
            "GATEWAY_PORT": str(free_port()),  # other stacks may start now and take 8800, too
        }
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        up = self._start("up", "--no-flower", "--no-metrics", "--concurrency", "1")
        wait_until(
            lambda: READY in self.output() or up.poll() is not None, "trainwire up is ready", 4 * PATIENCE_S
        )
        assert up.poll() is None, self.output()
        found = re.search(r"GATEWAY_URL=['\"]?(http://[^'\"\s]+)", self._run("env"))
        assert found is not None, self.output()
        self.url = found[1].rstrip("/")
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._started):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(2 * PATIENCE_S)

    def output(self) -> str:
        """Return all that `up` and the trainings have printed."""
        return self._output_path.read_text(errors="replace")

    def train(self, job_id: int, script: str, *, name: str | None = None) -> subprocess.Popen[bytes]:
        """Start a Python script under `trainwire run`."""
        path = self.home / f"job-{job_id}.py"
        path.write_text(textwrap.dedent(script))
        named = ["--name", name] if name else []
        return self._start("run", "--job-id", str(job_id), *named, "--", sys.executable, str(path))

    def guarded_gateway(self) -> str:
        """Start a second gateway, which requires tokens, and return its address."""
        port = free_port()
        exports = dict(shlex.split(line)[1].split("=", 1) for line in self._run("env").splitlines())
        own = exports | {"GATEWAY_AUTH": "on", "GATEWAY_PORT": str(port)}
        self._start_module("trainwire.gateway", [], own)
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: is_answering(f"{url}/healthz"), "the guarded gateway answers", 2 * PATIENCE_S)
        return url

    def new_token(self) -> str:
        """Make a viewer's token."""
        return self._run("token", "create", "--name", "browser").split()[-1]

    def kill_gateway(self) -> None:
        """SIGKILL the gateway; the supervisor starts it again."""
        psutil.Process(json.loads((self.data_dir / "run" / "gateway.json").read_text())["pid"]).kill()

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return self._start_module("trainwire", arguments, {})

    def _start_module(
        self, module: str, arguments: Sequence[str], env: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", module, *arguments]
        with self._output_path.open("ab") as output:
            process = subprocess.Popen(command, env={**self._env, **env}, stdout=output, stderr=output)
        self._started.append(process)
        return process

    def _run(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "trainwire", *arguments]
        done = subprocess.run(
            command, env=self._env, capture_output=True, text=True, check=True, timeout=3 * PATIENCE_S
        )
        return done.stdout


def is_answering(url: str) -> bool:
    """Return whether a server answers with success."""
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
