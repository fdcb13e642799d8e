"""Connections of simulated trainers to Redis, read by one event loop; redis-py would take most of its CPU time."""

from __future__ import annotations

import resource
import select
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

import hiredis

SPARE_FILES: Final = 200
"""Number of files that a process needs besides the connections of trainers."""

Handler: TypeAlias = Callable[[list[Any]], None]
pack: Any = hiredis.pack_command  # its type has no commands of several arguments


def ignore(_: list[Any]) -> None:
    """Ignore the replies to commands."""


class Connection:
    """A connection to Redis; `send` never waits for the replies, which `read` passes to the handlers."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        assert address.hostname is not None
        self._socket = socket.create_connection((address.hostname, address.port or 6379))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader()
        self._handlers: deque[tuple[int, Handler]] = deque()
        self._replies: list[Any] = []
        self.send([("AUTH", address.password or "")], ignore)
        self._socket.setblocking(False)
        self.fileno = self._socket.fileno()

    def send(self, commands: list[tuple[Any, ...]], handler: Handler) -> None:
        """Send commands; `handler` gets the list of their replies later."""
        self.send_packed([pack(command) for command in commands], handler)

    def send_packed(self, commands: list[bytes], handler: Handler) -> None:
        """Send commands that are encoded already."""
        self._handlers.append((len(commands), handler))
        data = b"".join(commands)
        while data:
            try:
                data = data[self._socket.send(data) :]
            except BlockingIOError:
                select.select([], [self._socket], [])

    def read(self) -> None:
        """Read the replies that have arrived, and call the handlers whose replies are complete."""
        self._reader.feed(self._socket.recv(65536))
        while (reply := self._reader.gets()) is not False:
            self._replies.append(reply)
            if len(self._replies) == self._handlers[0][0]:
                _, handler = self._handlers.popleft()
                replies, self._replies = self._replies, []
                handler(replies)


def max_connections() -> int:
    """Raise the limit of open files of this process to its maximum; return how many connections it allows."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    return max(1, limit - SPARE_FILES)
