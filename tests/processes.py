"""Worker processes for system tests, and a wait for conditions on them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import psutil

from tests.forked_starts import StartedProcess, start_module
from trainwire.workers.settings import Settings

ROOT = Path(__file__).parents[1]
START_TIMEOUT_S = 120  # on a machine with much else to do
WAIT_S = 60.0
"""For what takes a second on a quiet machine. A deadline that is met costs no time."""
END_S = 30


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = WAIT_S) -> None:
    """Wait until the condition holds; fail after `timeout_s` with `what` in the message."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.02)


def in_child(run: Callable[[], None]) -> int:
    """Run a function in a forked process, and return its exit code: 1 after an exception."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run()
            code = 0
        except BaseException:  # noqa: BLE001 - the parent reads the exit code
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def server_variables(settings: Settings) -> dict[str, str]:
    """Return the environment variables that name the Postgres and the Redis of `settings`."""
    return {
        "DATABASE_URL": settings.database_url.get_secret_value(),
        "REDIS_URL": settings.redis_url.get_secret_value(),
    }


class Process:
    """One of our own processes, with its output in a file; `python` is that of an installed trainwire."""

    def __init__(
        self, settings: Settings, log_path: Path, *arguments: str, python: str | None = None, **env: str
    ) -> None:
        self._log_path = log_path
        self._python = python
        self._arguments = arguments
        self.command: list[str] | None = None
        """Command to start instead of the module."""
        self._env = os.environ | {
            **server_variables(settings),
            **env,
        }
        self._process: StartedProcess | None = None

    @property
    def process(self) -> StartedProcess:
        """The running process."""
        assert self._process is not None
        return self._process

    @property
    def output(self) -> str:
        """All that it has written to stdout and stderr so far."""
        return self._log_path.read_text(errors="replace")

    def set_env(self, **env: str) -> None:
        """Change environment variables for the next start."""
        self._env = self._env | env

    def is_ready(self) -> bool:
        """Return whether a worker has logged that it takes orders."""
        return " ready." in self.output

    def start(self) -> Self:
        """Start it."""
        with self._log_path.open("ab") as log:
            if self.command is None:
                self._process = start_module("trainwire.workers", self._arguments, self._env, log, self._python)
            else:
                self._process = subprocess.Popen(
                    self.command, cwd=ROOT, env=self._env, stdout=log, stderr=log, start_new_session=True
                )
        return self

    def kill(self) -> None:
        """SIGKILL the main process only, as the out-of-memory killer would."""
        self.process.kill()
        self.process.wait(END_S)

    def stop(self) -> None:
        """End it and all processes that it started."""
        stop_all([self])

    def end(self) -> None:
        """Wait until it has ended after a SIGTERM; kill it and all processes that it started if it does not."""
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(END_S)

    @property
    def is_started(self) -> bool:
        """Return whether it was started; it may have ended."""
        return self._process is not None


def stop_all(processes: Sequence[Process]) -> None:
    """End processes at the same time: each takes a second or two, in which it mostly waits."""
    started = [process for process in processes if process.is_started]
    for process in started:
        process.process.terminate()
    for process in started:
        process.end()


def kill_one(workers: list[Process], chance: random.Random) -> None:
    """SIGKILL a worker or one of its pool processes, and start a killed worker again."""
    victim = chance.choice(workers)
    children = psutil.Process(victim.process.pid).children()
    if children and chance.random() < 0.5:
        os.kill(chance.choice(children).pid, signal.SIGKILL)
    else:
        victim.kill()
        victim.start()


@contextmanager
def workers_running(
    settings: Settings,
    folder: Path,
    *,
    workers: int = 1,
    beat: bool = True,
    python: str | None = None,
    **env: str,
) -> Iterator[list[Process]]:
    """Run workers (and beat), with more of an environment; yields the workers' processes.

    Where the environment names no Loki there is none. `python` is that of an installed trainwire to run instead.
    """
    env = {"LOKI_ENABLED": str("LOKI_URL" in env)} | env
    processes = [
        Process(settings, folder / f"worker{n}.log", "worker", "--name", f"w{n}", python=python, **env)
        for n in range(workers)
    ]
    others = [Process(settings, folder / "beat.log", "beat", python=python)] if beat else []
    try:
        for process in [*processes, *others]:
            process.start()
        for process in processes:
            wait_until(process.is_ready, "the worker's start", START_TIMEOUT_S)
        yield processes
    except AssertionError:
        for process in [*processes, *others]:
            print(process.output[-3000:])
        raise
    finally:
        stop_all([*processes, *others])
