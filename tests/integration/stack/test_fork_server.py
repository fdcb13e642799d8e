"""Workers are forks of a fork server, and go on without it."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from tests.processes import server_variables, wait_until
from trainwire.stack.child import Child
from trainwire.stack.fork_server import TITLE_SPACE, ForkServer
from trainwire.stack.stack import workers_command
from trainwire.workers.settings import Settings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are used on Linux only")


@pytest.fixture
def server(settings: Settings, tmp_path: Path) -> Iterator[ForkServer]:
    """A fork server that has started."""
    env = os.environ | {
        **server_variables(settings),
        "LOKI_ENABLED": "false",
        "PYTHONWARNINGS": "ignore",
    }
    made = ForkServer(workers_command("fork-server", TITLE_SPACE), tmp_path, env)
    made.start()
    yield made
    made.disconnect()
    made.child.stop()


def started(server: ForkServer, folder: Path, *arguments: str) -> Child:
    """Start a process of the workers by a fork."""
    child = Child(arguments[0], folder)
    child.start(workers_command(*arguments), opener=server.open_process)
    return child


def test_a_forked_worker_is_a_worker(server: ForkServer, tmp_path: Path) -> None:
    """It has the log, the command line and the session of its own, and ends by SIGTERM with its pool processes."""
    child = started(server, tmp_path, "worker", "--concurrency", "1")
    assert child.pid is not None
    wait_until(lambda: " ready." in child.log_path.read_text(), "the worker's start")
    process = psutil.Process(child.pid)
    parent = psutil.Process(server.child.pid)
    assert process.parent() == parent
    assert parent.num_threads() == 1  # others would hold locks for ever in a fork
    shown = " ".join(process.cmdline()).strip()
    assert shown.endswith("-m trainwire.workers worker --concurrency 1")
    assert os.getsid(child.pid) == child.pid
    (pool,) = process.children()
    child.stop()
    assert child.exit_code() == 0
    wait_until(lambda: not pool.is_running() or pool.status() == psutil.STATUS_ZOMBIE, "the end of the pool")


def test_exit_codes_and_signals_arrive(server: ForkServer, tmp_path: Path) -> None:
    """A fork that ends by itself has its exit code, and a killed one the negated number of the signal."""
    wrong = started(server, tmp_path, "worker", "--no-such-option")
    wait_until(lambda: wrong.exit_code() == 2, "the exit code of argparse")
    assert "unrecognized arguments: --no-such-option" in wrong.log_path.read_text()
    beat = started(server, tmp_path, "beat")
    assert beat.pid is not None
    os.kill(beat.pid, signal.SIGKILL)
    wait_until(lambda: beat.exit_code() == -signal.SIGKILL, "the signal")


def test_processes_outlive_their_fork_server(server: ForkServer, tmp_path: Path) -> None:
    """After SIGKILL of the server its processes run on and can be stopped; new ones are started without it."""
    beat = started(server, tmp_path, "beat")
    wait_until(lambda: "process.starting" in beat.log_path.read_text(), "the start of beat")
    assert server.child.pid is not None
    os.kill(server.child.pid, signal.SIGKILL)
    wait_until(lambda: not server.child.is_running(), "the end of the server")
    assert beat.is_running()
    other = started(server, tmp_path, "worker", "--no-such-option")
    wait_until(lambda: other.exit_code() == 2, "a process that is no fork")
    beat.stop()
    assert beat.exit_code() is not None
    server.start()
    soon = started(server, tmp_path, "worker", "--no-such-option")
    assert soon.pid is not None
    assert psutil.Process(soon.pid).parent() != psutil.Process(server.child.pid)  # not after the imports
    wait_until(lambda: soon.exit_code() == 2, "another process that is no fork")
    wait_until(server.has_begun, "the imports of the new server")
    again = started(server, tmp_path, "beat")
    assert again.pid is not None
    assert psutil.Process(again.pid).parent() == psutil.Process(server.child.pid)
    again.stop()


def test_a_fork_that_nobody_knows_ends(settings: Settings, tmp_path: Path) -> None:
    """A server that is killed between a fork and its report leaves no process that nobody knows."""
    env = os.environ | {
        **server_variables(settings),
        "PYTHONWARNINGS": "ignore",
    }
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [*workers_command("fork-server", TITLE_SPACE), str(theirs.fileno())]
    with ExitStack() as ends:
        ends.enter_context(ours)
        log = ends.enter_context((tmp_path / "log").open("wb"))
        with theirs:
            server = subprocess.Popen(command, env=env, pass_fds=[theirs.fileno()], stderr=log)
            ends.callback(server.wait)
            ends.callback(server.kill)
            ours.settimeout(60)
            assert b"ready" in ours.recv(100)
            with suppress(BlockingIOError):  # until the server cannot send its report
                while theirs.send(bytes(1000), socket.MSG_DONTWAIT):
                    pass
        socket.send_fds(ours, [b'["beat"]'], [log.fileno()])
        wait_until(psutil.Process(server.pid).children, "the fork")
        (fork,) = psutil.Process(server.pid).children()
        ends.callback(_kill, fork)
        server.kill()
        wait_until(lambda: not fork.is_running() or fork.status() == psutil.STATUS_ZOMBIE, "the end of the fork")


def _kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()


def test_a_python_without_pidfds_has_no_fork_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Python lacks `os.pidfd_open`, or the kernel refuses it, workers are started as programs."""
    assert ForkServer.is_possible()
    monkeypatch.setattr(os, "pidfd_open", _refused)
    assert not ForkServer.is_possible()
    monkeypatch.delattr(os, "pidfd_open")
    assert not ForkServer.is_possible()


def _refused(_pid: int) -> int:
    raise PermissionError(errno.EPERM, "refused")


def test_the_server_ends_with_its_client(server: ForkServer, tmp_path: Path) -> None:
    """When `trainwire up` is killed, the kernel closes its socket: the server ends, its processes run on."""
    beat = started(server, tmp_path, "beat")
    assert beat.pid is not None
    server.disconnect()
    wait_until(lambda: server.child.exit_code() == 0, "the end of the server")
    assert psutil.Process(beat.pid).is_running()
    beat.stop()
