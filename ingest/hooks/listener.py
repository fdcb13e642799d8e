"""Listens on the Unix socket to which hooks in the processes of the training send the values that they collect."""

from __future__ import annotations

import json
import os
import selectors
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from trainwire.ingest.hooks.caught import Caught, HookedProcess
from trainwire.ingest.process.daemon_pool import start_daemon

SOCKET_VARIABLE: Final = "TRAINWIRE_HOOKS"
CARRIER: Final = Path(__file__).with_name("carrier")
"""The folder with the hooks' modules, which is put first on the PYTHONPATH of the training."""
MAX_RECORD_BYTES: Final = 1024 * 1024
_CHUNK_BYTES: Final = 256 * 1024
_IDLE_S: Final = 0.05
"""While closing: after this many seconds without data, everything that ended processes had sent is read."""


class HookListener:
    """Accepts connections of the training's processes, and reads the values that their hooks send, until `close`.

    One thread serves all connections.
    """

    def __init__(self, folder: Path, caught: Caught) -> None:
        """Listen on a socket in `folder`, which must be accessible to this user alone.

        Raises `OSError` if that fails, or `RuntimeError` if no thread can be started.
        """
        self._path = folder / "hooks"
        self._caught = caught
        self._is_closing = False
        self._selector = selectors.DefaultSelector()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._wake_up, self._woken = socket.socketpair()
        try:
            self._socket.bind(str(self._path))
            self._socket.listen(128)
            self._socket.setblocking(False)
            self._selector.register(self._socket, selectors.EVENT_READ, self._accept)
            self._selector.register(self._woken, selectors.EVENT_READ, self._begin_to_close)
            self._thread = start_daemon(self._read, "trainwire-hooks")
        except (OSError, RuntimeError):
            for each in (self._socket, self._wake_up, self._woken):
                each.close()
            raise

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the environment variables that make a Python process install the hooks and use this socket."""
        path = os.pathsep.join(filter(None, [str(CARRIER), environ.get("PYTHONPATH", "")]))
        return {"PYTHONPATH": path, SOCKET_VARIABLE: str(self._path)}

    def close(self, timeout_s: float) -> None:
        """Read the values that were already sent, then close all connections; wait at most `timeout_s` seconds."""
        self._wake_up.close()
        self._thread.join(timeout_s)

    def _read(self) -> None:
        try:
            while (ready := self._selector.select(_IDLE_S if self._is_closing else None)) or not self._is_closing:
                for key, _ in ready:
                    if not key.data():
                        self._selector.unregister(key.fileobj)
        finally:
            for key in list(self._selector.get_map().values()):
                if isinstance(key.fileobj, socket.socket):
                    key.fileobj.close()
            self._selector.close()

    def _begin_to_close(self) -> bool:
        self._is_closing = True
        self._woken.close()
        return False

    def _accept(self) -> bool:
        try:
            connection, _ = self._socket.accept()
        except OSError as exc:  # no file descriptor is free: the process sends nothing
            self._caught.failed("the launcher", str(exc))
            return True
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ, _Connection(connection, self._caught).read)
        return True


class _Connection:
    """The connection of one process of the training, whose hooks send values as lines of JSON."""

    def __init__(self, connection: socket.socket, caught: Caught) -> None:
        self._connection = connection
        self._caught = caught
        self._process = HookedProcess(caught)
        self._rest = b""

    def read(self) -> bool:
        """Process the lines of JSON received so far; return whether the connection is still open.

        The connection is closed when the process has closed its end, or when a line exceeds `MAX_RECORD_BYTES`.
        """
        try:
            chunk = self._connection.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            chunk = b""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._take(line)
        if chunk and len(self._rest) <= MAX_RECORD_BYTES:
            return True
        self._connection.close()
        return False

    def _take(self, line: bytes) -> None:
        try:
            self._process.take(json.loads(line))  # not msgspec, which rejects NaN
        except (AttributeError, TypeError, ValueError, KeyError, OverflowError, RecursionError) as exc:
            self._caught.failed("the training", f"a record could not be read: {exc}")
