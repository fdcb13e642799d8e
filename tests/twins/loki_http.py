"""The HTTP interface of a twin of Loki: push, query_range, labels, ready, and controls under /twin/."""

from __future__ import annotations

import gzip
import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec

from tests.twins.loki_core import NO_TENANT, Core, control
from tests.twins.loki_deletes import delete, list_deletes
from tests.twins.loki_faults import Fault
from tests.twins.loki_query import BadQueryError, TooMuchError, parse_query, run_query
from tests.twins.loki_rules import config
from tests.twins.loki_store import Answer

OPERATIONS = {"/loki/api/v1/push": "push", "/loki/api/v1/query_range": "query"}


class Server(ThreadingMixIn, TCPServer):
    """The HTTP server of a twin; it keeps its open connections, so that a stop can close them."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, port: int, core: Core) -> None:
        self.core = core
        self.stopped = threading.Event()
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Record a connection, then serve it in a thread of its own."""
        with self.core.lock:
            self._open.add(request)
            self.core.requests["connections"] += 1
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Remove a connection from the record, and close it."""
        with self.core.lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections that clients closed early; report any other error."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def cut_connections(self) -> None:
        """Close all open connections."""
        self.stopped.set()
        with self.core.lock:
            for connection in self._open:
                cut(connection)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # the head and the body of an answer leave in one packet
    server: Server

    def do_GET(self) -> None:
        """Serve a query or a control."""
        self._serve(b"")

    def do_POST(self) -> None:
        """Serve a push or a control."""
        length = int(self.headers.get("Content-Length") or 0)
        self._serve(self.rfile.read(length))

    def do_DELETE(self) -> None:
        """Serve a control."""
        self._serve(b"")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Log nothing."""

    def _serve(self, body: bytes) -> None:
        path = urlsplit(self.path).path
        if path.startswith("/twin/"):
            arguments = dict(parse_qsl(urlsplit(self.path).query))
            self._answer(*control(self.server.core, self.command, path, arguments, body))
            return
        operation = OPERATIONS.get(path, "other")
        with self.server.core.lock:
            self.server.core.requests["requests"] += 1
            self.server.core.requests[operation] += 1
        fault = self.server.core.faults.take(operation)
        if fault is None or not self._play(fault, path, body):
            self._answer(*self._respond(path, body))

    def _play(self, fault: Fault, path: str, body: bytes) -> bool:
        """Do as the fault states; return whether the request needs no other answer."""
        if fault.kind == "lost_answer":
            self._respond(path, body)
        if fault.kind == "hang":
            self.server.stopped.wait(fault.delay_s or None)
        else:
            time.sleep(fault.delay_s)
        if fault.kind == "status":
            self._answer(fault.status, fault.text.encode(), retry_after=fault.retry_after)
        elif fault.kind != "slow":
            self.close_connection = True
            cut(self.connection)
        return fault.kind != "slow"

    def _respond(self, path: str, body: bytes) -> tuple[int, bytes]:
        wanted = self.server.core.authorization
        if wanted and self.headers.get("Authorization") != wanted:
            return 401, b"Unauthorized\n"
        route = ROUTES.get((self.command, path))
        return route(self, body) if route else (404, b"404 page not found\n")

    def _push(self, body: bytes) -> tuple[int, bytes]:
        largest = self.server.core.store.limits.max_body_bytes
        if len(body) > largest:
            problem = f"compressed message size {len(body)} exceeds limit {largest}"
            return _text(Answer(413, f"request body too large: {problem}"))
        media_type = self.headers.get("Content-Type", "").partition(";")[0].strip()
        if media_type != "application/json":
            return _text(Answer(400, f"the twin reads JSON only, and the Content-Type is {media_type!r}"))
        try:
            return _text(self.server.core.store.push(self._tenant, self._decompressed(body)))
        except (OSError, EOFError, zlib.error, ValueError) as error:
            return _text(Answer(400, str(error)))

    def _decompressed(self, body: bytes) -> bytes:
        encoding = self.headers.get("Content-Encoding", "")
        if encoding == "gzip":
            return gzip.decompress(body)
        if encoding:
            raise ValueError(f'Content-Encoding "{encoding}" not supported')
        return body

    def _query_range(self, _body: bytes) -> tuple[int, bytes]:
        store = self.server.core.store
        arguments = dict(parse_qsl(urlsplit(self.path).query))
        try:
            query = parse_query(arguments, store.now_ns(), store.limits)
        except BadQueryError as error:
            return 400, str(error).encode()
        try:
            with store.lock:
                found = run_query(query, store.streams(self._tenant), store.limits)
        except TooMuchError as error:
            return 500, str(error).encode()
        return 200, msgspec.json.encode(found)

    def _delete(self, _body: bytes) -> tuple[int, bytes]:
        return _text(delete(self.server.core.store, self._tenant, dict(parse_qsl(urlsplit(self.path).query))))

    def _deletes(self, _body: bytes) -> tuple[int, bytes]:
        answer = list_deletes(self.server.core.store, self._tenant)
        return (answer.status, answer.text.encode()) if answer.status == 200 else _text(answer)

    def _flush(self, _body: bytes) -> tuple[int, bytes]:
        self.server.core.store.flush()
        return 204, b""

    def _labels(self, _body: bytes) -> tuple[int, bytes]:
        with self.server.core.store.lock:
            names = {name for stream in self.server.core.store.streams(self._tenant) for name in stream.labels}
        return 200, msgspec.json.encode({"status": "success", "data": sorted(names)})

    def _build(self, _body: bytes) -> tuple[int, bytes]:
        version = "3.7.6" if self.server.core.store.limits.metadata_tells_lines_apart else "3.6.15"
        return 200, msgspec.json.encode({"version": version, "revision": "twin", "branch": "twin"})

    def _config(self, _body: bytes) -> tuple[int, bytes]:
        return 200, config(self.server.core.store.limits).encode()

    def _ready(self, _body: bytes) -> tuple[int, bytes]:
        return 200, b"ready\n"

    @property
    def _tenant(self) -> str:
        return self.headers.get("X-Scope-OrgID") or NO_TENANT

    def _answer(self, status: int, body: bytes, *, retry_after: str | int | None = None) -> None:
        with self.server.core.lock:
            self.server.core.statuses[status] += 1
        self.send_response(status, "Blocked" if status == 260 else None)
        if retry_after is not None:
            self.send_header("Retry-After", str(retry_after))
        if status != 204:
            is_json = body.startswith((b"{", b"["))
            self.send_header("Content-Type", "application/json" if is_json else "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if status != 204:
            self.wfile.write(body)


ROUTES: dict[tuple[str, str], Callable[[Handler, bytes], tuple[int, bytes]]] = {
    ("POST", "/loki/api/v1/push"): Handler._push,
    ("GET", "/loki/api/v1/query_range"): Handler._query_range,
    ("POST", "/loki/api/v1/delete"): Handler._delete,
    ("GET", "/loki/api/v1/delete"): Handler._deletes,
    ("POST", "/flush"): Handler._flush,
    ("GET", "/loki/api/v1/labels"): Handler._labels,
    ("GET", "/loki/api/v1/status/buildinfo"): Handler._build,
    ("GET", "/config"): Handler._config,
    ("GET", "/ready"): Handler._ready,
}


def cut(connection: socket.socket) -> None:
    """Close a connection in both directions, ignoring an error."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _text(answer: Answer) -> tuple[int, bytes]:
    # Go's http.Error ends its text with a line feed.
    return answer.status, f"{answer.text}\n".encode("utf-8", "replace") if answer.text else b""
