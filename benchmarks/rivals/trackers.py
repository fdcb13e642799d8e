"""The trackers under test: their settings, their servers, and the steps that each has stored after a run."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from trainwire.cli.transfer.readers.wandb_runs import QUIET_S, wandb_runs
from trainwire.cli.transfer.runs import End, SourceRun, Tally
from trainwire.schemas.wire.messages import Point

ROOT: Final = Path(__file__).parents[2]
_SERVER_START_S: Final = 90.0
_READ_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True)
class Stored:
    """The steps that a tracker has stored (step -> number of values), and the state that it shows for the run."""

    steps: Counter[int]
    state: str

    def is_final(self, reported: int) -> bool:
        """Return whether all of `reported` steps are stored and the run is not shown as running."""
        return len(self.steps) >= reported and not self.state.startswith("running")


@dataclass
class Tracker:
    """One tracker with its files in `folder`; `python` is the interpreter that has its packages.

    `settings` are environment variables of its training, its server and its reader.
    """

    name: str
    folder: Path
    python: Path
    settings: Mapping[str, str]
    server_command: tuple[str, ...] = ()
    server_url: str = ""
    server_settings: Mapping[str, str] = field(default_factory=dict)
    _server: subprocess.Popen[bytes] | None = None

    @property
    def has_server(self) -> bool:
        """Whether the tracker needs a server process."""
        return bool(self.server_command)

    def start_server(self) -> None:
        """Start the server, if the tracker has one, and wait until it answers.

        Raises `RuntimeError` if it ends or does not answer within `_SERVER_START_S` seconds.
        """
        if not self.has_server:
            return
        with (self.folder / "server.log").open("ab") as log:
            self._server = subprocess.Popen(
                self.server_command,
                cwd=self.folder,
                env=self._environment(self.server_settings),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _SERVER_START_S
        while not self._answers():
            if time.monotonic() > deadline or self._server.poll() is not None:
                raise RuntimeError(f"the server of {self.name} did not start: see {self.folder / 'server.log'}")
            time.sleep(0.1)  # between two questions to a server that starts for seconds

    def kill_server(self) -> None:
        """Send SIGKILL to all processes of the server, if it runs."""
        if self._server is None:
            return
        with suppress(psutil.NoSuchProcess):
            server = psutil.Process(self._server.pid)
            for process in [server, *server.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self._server.wait()
        self._server = None

    def server_cpu_s(self) -> float:
        """Return the CPU seconds of the server's processes, including ended children; 0 without a server."""
        if self._server is None:
            return 0.0
        server = psutil.Process(self._server.pid)
        times = [process.cpu_times() for process in (server, *server.children(recursive=True))]
        return float(sum(t.user + t.system + t.children_user + t.children_system for t in times))

    def train(self, truth: Path, steps: int, step_s: float, values: int = 1) -> subprocess.Popen[bytes]:
        """Start the training, which writes the steps that it reported to the file `truth`.

        A step takes `step_s` seconds, and reports `values` values.
        """
        script = Path(__file__).with_name("training.py")
        with (self.folder / "training.log").open("wb") as log:
            return subprocess.Popen(
                [self.python, script, self.name, truth, str(steps), str(step_s), str(values)],
                cwd=truth.parent,
                env=self._environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stored(self) -> Stored:
        """Return the steps and the state that the tracker has stored.

        Raises `RuntimeError` if they cannot be read within `_READ_TIMEOUT_S` seconds.
        """
        if self.name == "wandb":
            return self._stored_in_a_wandb_file()
        script = Path(__file__).with_name("stored.py")
        try:
            done = subprocess.run(
                [self.python, script, self.name],
                env=self._environment(),
                cwd=self.folder,
                capture_output=True,
                timeout=_READ_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            raise RuntimeError(f"{self.name} gave no answer within {_READ_TIMEOUT_S:g} s") from exc
        if done.returncode:
            raise RuntimeError(done.stderr.decode(errors="replace").strip().rpartition("\n")[2])
        found = json.loads(done.stdout)
        return Stored(Counter(found["steps"]), found["state"])

    def _stored_in_a_wandb_file(self) -> Stored:
        """Read the only `.wandb` file with the reader of `trainwire import`: the package wandb has none any more.

        Raises `RuntimeError` if there is not exactly one file, or if it cannot be read.
        """
        paths = list((self.folder / "wandb").glob("offline-run-*/*.wandb"))
        if len(paths) != 1:
            raise RuntimeError(f"{len(paths)} files of W&B in {self.folder / 'wandb'}, not one")
        (path,) = paths
        long_ago = time.time() - 2 * QUIET_S
        os.utime(path, (long_ago, long_ago))  # a file that has just changed is that of a running training
        (run,) = wandb_runs(path, None, "")
        if not isinstance(run, SourceRun):
            raise RuntimeError(run.reason)  # noqa: TRY004
        items = list(run.items(Tally()))
        steps = Counter(item.step for item in items if isinstance(item, Point) and "loss" in item.values)
        end = next(item for item in items if isinstance(item, End))  # the last item of each run
        state = f"ended, exit code {end.exit_code}" if end.exit_code is not None else "no end recorded"
        return Stored(Counter({step: count for step, count in steps.items() if step is not None}), state)

    def _answers(self) -> bool:
        if not self.server_url:  # `trainwire up` writes this line when all parts run
            return b"ready" in (self.folder / "server.log").read_bytes().rpartition(b"starting")[2]
        with suppress(OSError), urllib.request.urlopen(self.server_url, timeout=5):
            return True
        return False

    def _environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        own = {"HOME": str(self.folder), "PYTHONWARNINGS": "ignore"}
        return {**os.environ, **own, **self.settings, **(more or {})}


def make_tracker(name: str, folder: Path, rivals_python: Path) -> Tracker:
    """Return the tracker `name`, with all of its files in `folder`."""
    port = str(_free_port())
    command: tuple[str, ...]
    if name == "trainwire":
        settings = {"TRAINWIRE_DATA_DIR": str(folder / "data"), "PYTHONPATH": str(ROOT), "LOKI_ENABLED": "false"}
        command = (sys.executable, "-m", "trainwire", "up")
        return Tracker(name, folder, Path(sys.executable), settings, command)
    if name in {"mlflow", "mlflow-async"}:
        url = f"http://127.0.0.1:{port}"
        settings = {"MLFLOW_TRACKING_URI": url, "MLFLOW_DISABLE_TELEMETRY": "true"}
        store = (
            "--backend-store-uri",
            f"sqlite:///{folder}/mlflow.db",
            "--default-artifact-root",
            f"{folder}/files",
        )
        command = (str(rivals_python), "-m", "mlflow", "server", *store, "--port", port, "--workers", "1")
        more = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        return Tracker(name, folder, rivals_python, settings, command, f"{url}/health", more)
    if name == "trackio-server":
        # The training's own folder holds what it could not send; the reader looks into that of the server.
        url, token = f"http://127.0.0.1:{port}/", secrets.token_hex(16)
        settings = {"TRACKIO_SERVER_URL": url, "TRACKIO_WRITE_TOKEN": token, "TRACKIO_DIR": str(folder / "server")}
        command = (str(rivals_python), "-m", "trackio.cli", "show", "--host", "127.0.0.1")
        return Tracker(name, folder, rivals_python, settings, command, url, {"GRADIO_SERVER_PORT": port})
    settings = {
        "TRACKIO_DIR": str(folder / "trackio"),
        "WANDB_DIR": str(folder),
        "WANDB_MODE": "offline",
        "TENSORBOARD_DIR": str(folder / "events"),
    }
    return Tracker(name, folder, rivals_python, settings)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
