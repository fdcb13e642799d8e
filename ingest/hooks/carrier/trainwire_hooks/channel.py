"""Sends the values that hooks collect to the launcher: dicts, as lines of JSON over a Unix socket.

Sending never blocks the training, and never raises an exception in it.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from . import SOCKET_VARIABLE

MAX_WAITING_BYTES = 64 * 1024 * 1024
"""Maximum size of the queue of records that the launcher, because it is stopped or slow, has not read.

Further records are counted and discarded.
"""
CONNECT_EVERY_S = 0.1
"""Seconds between attempts to connect while too many processes wait for the launcher, because it is stopped."""
FLUSH_S = 2.0
"""Maximum time in seconds that the exit of the process waits until queued records are sent."""
RANK_VARIABLES = ("RANK", "SIZE", "PROCID", "TASKS", "STEP_ID")
"""Suffixes of environment variables that give the rank, such as `OMPI_COMM_WORLD_RANK`.

The launcher parses them.
"""

Record = dict[str, Any]


class Channel:
    """The connection of this process to the launcher.

    A background thread sends the records that do not fit into the socket's buffer at once. It also connects, if
    the launcher is stopped and its queue of connections is full.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.RLock()  # a signal handler of the training may log in the middle of a call
        self._thread: threading.Thread | None = None
        self._socket: socket.socket | None = None
        self._identity: tuple[int, int] | None = None
        self._connect()

    def send(self, record: Record) -> None:
        """Send a dict to the launcher; if the socket's buffer is full, queue it for the background thread.

        The dict is discarded if the launcher has ended or if `MAX_WAITING_BYTES` are queued.
        """
        if self._pid != os.getpid():  # forked: the connection is the parent's, and so may be its lock
            self._lock = threading.RLock()
            self._connect()
        line = json.dumps(record, separators=(",", ":"), default=str).encode("utf-8", "backslashreplace") + b"\n"
        with self._lock:
            if self._is_lost() or self._is_full(line):
                return
            self._waiting.append(line)
            self._waiting_bytes += len(line)
            if self._thread is None and self._send_waiting():
                thread = threading.Thread(target=self._send_in_thread, name="trainwire-hooks", daemon=True)
                with suppress(RuntimeError):  # the system refuses a thread: the next record tries again
                    thread.start()
                    self._thread = thread

    def close(self) -> None:
        """Wait up to `FLUSH_S` seconds until the queued records are sent, then close the connection."""
        if self._pid != os.getpid():
            return
        thread = self._thread
        if thread is not None:
            thread.join(FLUSH_S)
        with self._lock:
            if self._socket is not None and not self._is_lost():
                self._socket.close()
                self._socket = None
            self._must_connect = False

    def _connect(self) -> None:
        self._pid = os.getpid()
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._left_out = 0
        self._thread = None
        self._open_socket()
        ranks = {name: value for name, value in os.environ.items() if name.endswith(RANK_VARIABLES)}
        self.send({"type": "process", "pid": self._pid, "environ": ranks})

    def _open_socket(self) -> None:
        """Try to connect, without waiting; `_must_connect` is then True if a later attempt may succeed."""
        self._socket = None
        self._must_connect = False
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)  # before `connect`, which would wait for room in the launcher's queue
        try:
            connection.connect(self._path)
        except OSError as exc:  # else the launcher has ended
            self._must_connect = isinstance(exc, BlockingIOError)
            connection.close()
            return
        self._socket = connection
        self._identity = _identity_of(connection.fileno())

    def _is_lost(self) -> bool:
        """Return whether no record can be sent any more.

        The launcher has ended, or the training has closed the socket's file descriptor, such as by
        `os.closerange`. The descriptor number may belong to another file by now.
        """
        if self._socket is None:
            return not self._must_connect
        if _identity_of(self._socket.fileno()) == self._identity:
            return False
        self._socket.detach()
        self._socket = None
        return True

    def _is_full(self, line: bytes) -> bool:
        is_full = self._waiting_bytes + len(line) > MAX_WAITING_BYTES
        self._left_out += is_full
        return is_full

    def _send_waiting(self) -> bool:
        """Send queued bytes until the socket's buffer is full; return whether some are still queued."""
        if self._must_connect:
            self._open_socket()
            if self._must_connect:
                return True
        while self._waiting and self._socket is not None:
            try:
                sent = self._socket.send(self._waiting[0])
            except BlockingIOError:
                return True
            except OSError:  # the launcher was killed
                self._socket = None
                return False
            self._waiting_bytes -= sent
            rest = self._waiting.popleft()[sent:]
            if rest:
                self._waiting.appendleft(rest)
        return False

    def _send_in_thread(self) -> None:
        while True:
            with self._lock:
                if self._is_lost() or not self._send_waiting():
                    self._thread = None
                    left_out, self._left_out = self._left_out, 0
                    if left_out:
                        self.send({"type": "left out", "count": left_out})
                    return
                connection = self._socket
            if connection is None:
                time.sleep(CONNECT_EVERY_S)
            else:
                poll = select.poll()  # `select.select` refuses descriptors above 1023
                poll.register(connection, select.POLLOUT)
                poll.poll(1000)


def _identity_of(descriptor: int) -> tuple[int, int] | None:
    """Return the device and inode of an open file descriptor; None if it is closed."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return None
    return found.st_dev, found.st_ino


_channels: list[Channel] = []
_receivers: list[Callable[[Record], None]] = []


def send_to(take: Callable[[Record], None]) -> None:
    """Make `send` call `take` from now on instead of sending to the launcher.

    Also reports to the launcher that this process has its own `Run`.
    """
    send({"type": "sdk"})
    _receivers[:] = [take]


def send(record: Record) -> None:
    """Pass a dict of logged values to the function set by `send_to`, or else send it to the launcher.

    Do nothing if no function is set and no launcher runs. Never raises an exception.
    """
    try:
        if _receivers:
            _receivers[0](record)
            return
        path = os.environ.get(SOCKET_VARIABLE)
        if not _channels and path:
            _channels.append(Channel(path))
        for channel in _channels:
            channel.send(record)
    except Exception:  # noqa: BLE001, S110 - a record is worth less than the training
        pass


@atexit.register  # at import, which is before a library's own: it runs after them
def _close() -> None:
    for channel in _channels:
        channel.close()
