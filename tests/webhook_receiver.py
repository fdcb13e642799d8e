"""An HTTP server for alerts that refuses, hangs, kills the sender, ends and comes back, as a test sets it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

from trainwire.stack.persisted_config import free_port


class Received(msgspec.Struct, frozen=True):
    """One request; the names of its headers are in lower case."""

    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        """The body as JSON."""
        return msgspec.json.decode(self.body)


class Receiver:
    """Answers 204, or as set; `requests` has every request that arrived complete."""

    def __init__(self) -> None:
        self.requests: list[Received] = []
        self.status = 204
        self.headers: dict[str, str] = {}
        self.hangs = False
        """Whether requests are not answered, until `release` is set."""
        self.kills: int | None = None
        """The process that is killed by the next request, before the answer."""
        self.release = threading.Event()
        self.port = free_port()
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        """The address of the webhook, with a secret path."""
        return f"http://127.0.0.1:{self.port}/hooks/very-secret"

    def start(self) -> None:
        """Listen on its port."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.answer(self)

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on."""
        self.release.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Keep a request, and answer it as set."""
        size_bytes = int(request.headers["Content-Length"])
        body = request.rfile.read(size_bytes)
        if len(body) < size_bytes:  # its sender has ended
            return
        self.requests.append(Received({name.lower(): value for name, value in request.headers.items()}, body))
        if self.kills is not None:
            pid, self.kills = self.kills, None
            os.kill(pid, signal.SIGKILL)
            return
        if self.hangs:
            self.release.wait(30)
            return
        request.send_response(self.status)
        for name, value in self.headers.items():
            request.send_header(name, value)
        request.end_headers()


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Run a receiver within the block."""
    receiver = Receiver()
    receiver.start()
    try:
        yield receiver
    finally:
        receiver.stop()
