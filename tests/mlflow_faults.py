"""A proxy in front of a real MLflow server that answers 500 to the requests that a test chooses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests

FAILURE = b'{"error_code": "INTERNAL_ERROR", "message": "it hurts"}'


class FaultyMlflow(ThreadingHTTPServer):
    """Passes on every request, except those whose path or body contains `poison`; None disables it."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.upstream = upstream
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.poison: bytes | None = None
        self.failed: list[str] = []


class _Passing(BaseHTTPRequestHandler):
    server: FaultyMlflow

    def do_GET(self) -> None:
        """Pass on the request, or answer 500."""
        self._pass_on()

    def do_POST(self) -> None:
        """Pass on the request, or answer 500."""
        self._pass_on()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log nothing."""

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        poison = self.server.poison
        if poison is not None and (poison in body or poison in self.path.encode()):
            self.server.failed.append(self.path)
            self._answer(500, FAILURE)
            return
        answer = requests.request(
            self.command,
            self.server.upstream + self.path,
            data=body,
            headers={"Content-Type": "application/json"},
            timeout=60,
        )
        self._answer(answer.status_code, answer.content)

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def faulty_mlflow(upstream: str) -> Iterator[FaultyMlflow]:
    """Run a faulty proxy in front of the server at this address."""
    with FaultyMlflow(upstream) as proxy:
        serving = threading.Thread(target=proxy.serve_forever, daemon=True)
        serving.start()
        yield proxy
        proxy.shutdown()
        serving.join(20)
