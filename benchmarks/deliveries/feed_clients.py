"""Thousands of clients of the live feed in one process, with raw sockets.

Some of them, the watched ones, record the lines that they receive; the others only count bytes.

`python -m benchmarks.feed_clients HOST PORT PATH CLIENTS LAST_SEQ` prints `ready` when every client has its first
frame. At the end it prints a JSON object: `least` and `most` bytes read by a client, and for each watched client
the first and last line and the time of each frame, by CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import json
import re
import select
import socket
import sys
import time
from dataclasses import dataclass, field

WATCHED = 40
"""Approximate number of clients that record the lines of each frame."""
AT_ONCE = 100
"""Number of connections that are opened before their responses are read."""
DEADLINE_S = 120
_ROWS = re.compile(rb'"first_seq":(\d+),"last_seq":(\d+),"lines":\[.*?\}\]\}', re.DOTALL)

_PING = b"\x89\x04"
"""First bytes of uvicorn's ping frames; the feed's ASCII JSON never contains them."""
_PONG_HEAD = b"\x8a\x84\x00\x00\x00\x00"
"""First bytes of a pong frame, with a mask of zeros."""


@dataclass
class Client:
    """One client connection, with the bytes and frames it has received."""

    socket: socket.socket
    is_watched: bool
    size_bytes: int = 0
    rest: bytes = b""
    frames: list[tuple[int, int, float]] = field(default_factory=list)

    def take(self, data: memoryview, at: float) -> None:
        """Count received bytes.

        For a watched client also record the lines of each complete frame, received at `at`.
        """
        self.size_bytes += len(data)
        if not self.is_watched:
            return
        self.rest += bytes(data)
        end = 0
        for match in _ROWS.finditer(self.rest):
            self.frames.append((int(match[1]), int(match[2]), at))
            end = match.end()
        self.rest = self.rest[end:]


def main() -> None:
    """Connect all clients, read until the watched ones have the last line, and print the result."""
    host, path = sys.argv[1], sys.argv[3]
    port, count, last_seq = int(sys.argv[2]), int(sys.argv[4]), int(sys.argv[5])
    poll = select.epoll()
    clients: dict[int, Client] = {}
    for begin in range(0, count, AT_ONCE):
        sockets = [_connect(host, port, path) for _ in range(begin, min(begin + AT_ONCE, count))]
        for number, one in enumerate(sockets, begin):
            is_watched = number % max(count // WATCHED, 1) == 0
            clients[one.fileno()] = client = Client(one, is_watched)
            client.take(memoryview(_read_head(one)), time.monotonic())
            poll.register(one, select.EPOLLIN)
    buffer = bytearray(1 << 18)
    while not all(client.size_bytes for client in clients.values()):
        _read(poll, clients, buffer)
    print("ready", flush=True)
    watched = [client for client in clients.values() if client.is_watched]
    deadline = time.monotonic() + DEADLINE_S
    while not all(client.frames and client.frames[-1][1] >= last_seq for client in watched):
        assert time.monotonic() < deadline, [client.frames[-1:] for client in watched]
        _read(poll, clients, buffer)
    for _ in range(20):
        _read(poll, clients, buffer)
    sizes = [client.size_bytes for client in clients.values()]
    result = {"least": min(sizes), "most": max(sizes), "cpu_s": time.process_time()}
    print(json.dumps(result | {"watched": [client.frames for client in watched]}), flush=True)


def _read(poll: select.epoll, clients: dict[int, Client], buffer: bytearray) -> None:
    view = memoryview(buffer)
    for fd, _ in poll.poll(0.05):
        size = clients[fd].socket.recv_into(buffer)
        assert size, "a client was disconnected"
        clients[fd].take(view[:size], time.monotonic())
        ping = buffer.find(_PING, 0, size)
        if ping >= 0:
            clients[fd].socket.send(_PONG_HEAD + buffer[ping + 2 : ping + 6])


def _connect(host: str, port: int, path: str) -> socket.socket:
    client = socket.create_connection((host, port))
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}:{port}"]
    if path.partition("?")[0].endswith("/ws"):
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        lines += ["Upgrade: websocket", "Connection: Upgrade", key, "Sec-WebSocket-Version: 13"]
    client.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
    return client


def _read_head(client: socket.socket) -> bytes:
    """Read the response header; return the bytes after it."""
    answer = client.recv(4096)
    while b"\r\n\r\n" not in answer:
        answer += client.recv(4096)
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert b" 101 " in head or b" 200 " in head, head
    client.setblocking(False)
    return rest


if __name__ == "__main__":
    main()
