"""Starts processes of ours by forks of one process that has imported their modules, as `trainwire up` does.

The start of a new worker, beat or gateway takes one to two seconds of CPU time, most of it for imports, and its
end another third of a second; a fork takes a fifth of a second for both. A process whose environment has Python
options of its own is started as a new program. The server is that of decision 36, with the gateway's modules too.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import IO, Final, Protocol

import trainwire.workers
from trainwire.stack.fork_server import TITLE_SPACE, ForkedProcess, ForkServer, _Connection
from trainwire.stores.settings import WrongSettings
from trainwire.workers import fork_server

_ROOT: Final = Path(__file__).parents[1]
EXIT_TIMEOUT_S: Final = 20
_STARTS: Final = {"PYTHONWARNINGS": "ignore"}  # Celery warns about root
_SETTINGS: Final = ("DATABASE_URL", "REDIS_URL")


class StartedProcess(Protocol):
    """The part of the interface of `subprocess.Popen` that the tests use."""

    pid: int

    @property
    def returncode(self) -> int | None:
        """The exit code that `poll` or `wait` has returned."""

    def poll(self) -> int | None:
        """Return the exit code, or the negated number of the signal that ended the process; None while it runs."""

    def wait(self, timeout: float) -> int:
        """Wait for the end of the process; raise `subprocess.TimeoutExpired` after `timeout` seconds."""

    def send_signal(self, sig: int) -> None:
        """Send a signal to the process unless it has ended."""

    def kill(self) -> None:
        """Send SIGKILL."""

    def terminate(self) -> None:
        """Send SIGTERM."""


class Forked(ForkedProcess):
    """A forked process."""

    @property
    def returncode(self) -> int | None:
        """The exit code; None while the process runs."""
        return self.poll()

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)


def start_module(
    module: str, arguments: tuple[str, ...], env: Mapping[str, str], log: IO[bytes], python: str | None = None
) -> StartedProcess:
    """Start `python -m <module> <arguments>` in a session of its own, in the folder of the repository.

    Its environment is `env`, and its output goes to `log`. If `python` is given, it is the interpreter of an
    installed trainwire, which is started outside of the repository.
    """
    if python is None and ForkServer.is_possible() and _python_options(env) == _python_options(os.environ):
        return _forks().start([json.dumps(dict(env)), module, *arguments], log)
    return subprocess.Popen(
        [python or sys.executable, "-m", module, *arguments],
        cwd=_ROOT if python is None else Path(log.name).parent,
        env={**_STARTS, **env},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def _python_options(env: Mapping[str, str]) -> dict[str, str]:
    return {name: env[name] for name in env if name.startswith("PYTHON") and name not in _STARTS}


class _Forks:
    """The fork server of this test process."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forked_starts", TITLE_SPACE, str(theirs.fileno())],
                cwd=_ROOT,
                env={name: value for name, value in os.environ.items() if name not in _SETTINGS} | _STARTS,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._connection = _Connection(ours)

    def start(self, request: list[str], log: IO[bytes]) -> Forked:
        """Start one process."""
        return Forked(self._connection, self._connection.fork(request, log).pid)

    def end(self) -> None:
        """Close the socket, which ends the server."""
        self._connection.close()
        self._process.wait(EXIT_TIMEOUT_S)


@cache
def _forks() -> _Forks:
    forks = _Forks()
    atexit.register(forks.end)
    return forks


def _modules(package: ModuleType) -> Iterator[str]:
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not found.ispkg and not found.name.endswith("__main__"):
            yield found.name


def main(descriptor: int) -> None:
    """Serve as the fork server; in a fork, run the module that was asked for."""
    for module in (*_modules(trainwire.workers), *fork_server._MODULES, "trainwire.gateway.__main__"):
        with contextlib.suppress(
            WrongSettings
        ):  # it reads the settings when it is imported: each fork has its own
            importlib.import_module(module)
    gc.collect()
    gc.freeze()
    sys.orig_argv = [sys.executable, "-m", "trainwire.workers"]
    request = fork_server.serve(descriptor)
    if request is None:
        return
    env, module, *arguments = request
    os.environ.clear()
    os.environ.update(json.loads(env))
    fork_server.set_command_line([sys.executable, "-m", module, *arguments])
    sys.argv = [module, *arguments]
    with contextlib.suppress(KeyboardInterrupt):
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(int(sys.argv[2]))
