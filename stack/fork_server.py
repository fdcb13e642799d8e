"""The client of the process that starts workers by forks (`trainwire.workers.fork_server`, decision 36)."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, ClassVar, Final

from trainwire.stack.child import POLL_S, Child, RunningProcess, open_process

FORK_TIMEOUT_S: Final = 60.0
"""Seconds; on a busy machine the imports of a new fork server alone take 30 s."""
MAX_REPLY_BYTES: Final = 4096
UNKNOWN_EXIT: Final = 255
"""Exit code of a process that ended after its fork server: nobody has received the real one."""
TITLE_SPACE: Final = "for the processes of trainwire up ".ljust(120, ".")
"""Argument of the fork server: a fork writes its own command line over that of the server, so it must be long."""
_PACKAGE: Final = "trainwire.workers"


class ForkServer:
    """A process of the stack that starts workers and beat by forks; without it they are started as new programs.

    `command` starts the fork server; the number of a file descriptor is appended to it. Processes that it has
    started go on if it ends.
    """

    is_store: ClassVar[bool] = False
    name: ClassVar[str] = "fork-server"

    def __init__(self, command: Sequence[str], data_dir: Path, env: Mapping[str, str]) -> None:
        self.child = Child(self.name, data_dir)
        self._command = command
        self._env = env
        self._connection: _Connection | None = None
        self._starts = 0

    @staticmethod
    def is_possible() -> bool:
        """Return whether this Python and this kernel have what the client needs: pidfds, of Linux 5.3."""
        try:
            os.close(os.pidfd_open(os.getpid()))
        except (AttributeError, OSError):
            return False
        return hasattr(signal, "pidfd_send_signal")

    def start(self) -> None:
        """Start the fork server (anew), which answers requests as soon as its imports are done."""
        self.disconnect()
        self._starts += 1
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            number = theirs.fileno()
            self.child.start([*self._command, str(number)], self._env, descriptors=[number])
        self._connection = _Connection(ours)

    def has_begun(self) -> bool:
        """Return whether the fork server has imported its modules, so that a fork takes no time."""
        return self._connection is not None and self._connection.has_begun()

    def disconnect(self) -> None:
        """Close the socket, which ends the fork server; its processes go on."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def open_process(
        self, command: Sequence[str], env: Mapping[str, str] | None, log: IO[bytes], folder: Path
    ) -> RunningProcess:
        """Start a command of the package `trainwire.workers` by a fork, or as a new program if that fails.

        The environment and the folder of a fork are those of the fork server.
        """
        arguments = command[command.index(_PACKAGE) + 1 :]
        # A stack that starts waits for the imports; one that runs must go on watching its other processes.
        if self._connection is not None and (self._starts == 1 or self.has_begun()):
            try:
                return self._connection.fork(arguments, log)
            except (OSError, EOFError):
                # It is restarted by the supervisor. Killed first, so that it cannot execute the request later.
                if self.child.pid is not None and self.child.is_running():
                    os.kill(self.child.pid, signal.SIGKILL)
                self.disconnect()
        return open_process(command, env, log, folder)


class _Connection:
    """The socket to one fork server."""

    def __init__(self, server: socket.socket) -> None:
        self.is_closed = False
        self.is_ready = False
        self._socket = server
        self._lock = threading.RLock()  # a second ctrl-C may interrupt `fork`, and asks for exit codes
        self._codes: dict[int, int] = {}

    def fork(self, arguments: Sequence[str], log: IO[bytes]) -> ForkedProcess:
        """Start a process with these arguments whose output goes to `log`.

        Raises `EOFError` or `OSError` if the fork server does not respond.
        """
        deadline = time.monotonic() + FORK_TIMEOUT_S
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(arguments).encode()], [log.fileno()])
            while (timeout_s := deadline - time.monotonic()) > 0:
                if (pid := self._receive(timeout_s)) is not None:
                    return ForkedProcess(self, pid)
        raise TimeoutError(f"no process was started within {FORK_TIMEOUT_S:.0f} s")

    def exit_code(self, pid: int) -> int | None:
        """Return the exit code that the fork server has reported for the process `pid`, without waiting.

        Returns None if it has reported none: the process runs, or has ended after its fork server.
        """
        with self._lock:
            self._read_messages()
            return self._codes.get(pid)

    def has_begun(self) -> bool:
        """Return whether the fork server has imported its modules, so that it answers requests at once."""
        with self._lock:
            self._read_messages()
            return self.is_ready

    def _read_messages(self) -> None:
        with suppress(OSError, EOFError):
            while not self.is_closed and select.select([self._socket], [], [], 0)[0]:
                self._receive(0)

    def close(self) -> None:
        """Close the socket, which ends the fork server."""
        self.is_closed = True
        self._socket.close()

    def _receive(self, timeout_s: float) -> int | None:
        """Wait for one message; return the id of a started process, or None after that of an ended one."""
        if not select.select([self._socket], [], [], timeout_s)[0]:
            return None
        data = self._socket.recv(MAX_REPLY_BYTES)
        if not data:
            self.close()
            raise EOFError("the fork server has ended")
        message = json.loads(data)
        if "ready" in message:
            self.is_ready = True
            return None
        if "code" not in message:
            self._codes.pop(message["pid"], None)  # that of an earlier process with this id
            return int(message["pid"])
        self._codes[message["pid"]] = message["code"]
        return None


class ForkedProcess:
    """A process that a fork server has started, with the methods of `Popen` that `Child` uses."""

    def __init__(self, server: _Connection, pid: int) -> None:
        self.pid = pid
        self._server = server
        self._code: int | None = None
        self._descriptor: int | None = None  # refers to this process even if its id is used again
        try:
            self._descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            pass  # it has ended already
        except OSError:
            os.kill(pid, signal.SIGKILL)  # the caller starts another one instead
            raise

    def poll(self) -> int | None:
        """Return the exit code, or the negated number of the signal that ended the process; None while it runs."""
        if self._code is None:
            self._code = self._server.exit_code(self.pid)
            if self._code is None and self._server.is_closed and self._has_ended():
                self._code = UNKNOWN_EXIT
        return self._code

    def wait(self, timeout: float) -> int:
        """Wait for the end of the process; raise `subprocess.TimeoutExpired` after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(POLL_S)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal to the process unless it has ended."""
        if self._descriptor is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, number)

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def _has_ended(self) -> bool:
        return self._descriptor is None or bool(select.select([self._descriptor], [], [], 0)[0])
