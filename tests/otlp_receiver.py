"""A collector of OpenTelemetry: an HTTP server that decodes traces, and hangs or refuses if a test wants it."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True)
class Span:
    """One span that has arrived; ids are hexadecimal, `parent_id` is empty for the root of a trace."""

    name: str
    service: str
    pid: int
    trace_id: str
    span_id: str
    parent_id: str
    links: tuple[str, ...]
    """The identities of the linked spans."""
    attributes: dict[str, Any]
    seconds: float
    is_error: bool

    @property
    def identity(self) -> str:
        """A traceparent of this span without version and flags."""
        return f"{self.trace_id}-{self.span_id}"


class OtlpReceiver:
    """Listens on a free port; `spans` has all spans that have arrived, and `status` is the answer to requests."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.requests = 0
        self.status = 200
        self.hangs = False
        self._release = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.answer(self)

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        """The value of OTEL_EXPORTER_OTLP_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def stop(self) -> None:
        """Refuse connections from now on, and end those that hang."""
        self._release.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Decode a request, keep its spans if the answer is 200, and answer it."""
        body = request.rfile.read(int(request.headers["Content-Length"]))
        self.requests += 1
        if self.hangs:
            self._release.wait(60)
            return
        if self.status == 200:
            assert request.path == "/v1/traces"
            is_packed = request.headers.get("Content-Encoding") == "gzip"
            self.spans += _spans(gzip.decompress(body) if is_packed else body)
        request.send_response(self.status)
        request.send_header("Content-Type", "application/x-protobuf")
        request.end_headers()
        request.wfile.write(ExportTraceServiceResponse().SerializeToString())

    def named(self, name: str) -> list[Span]:
        """Return the spans with this name."""
        return [span for span in self.spans if span.name == name]


@contextmanager
def collecting() -> Iterator[OtlpReceiver]:
    """Run a receiver within the block."""
    receiver = OtlpReceiver()
    try:
        yield receiver
    finally:
        receiver.stop()


def _spans(body: bytes) -> Iterator[Span]:
    for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = _attributes(of_resource.resource.attributes)
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                yield Span(
                    span.name,
                    resource["service.name"],
                    resource["process.pid"],
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    tuple(f"{link.trace_id.hex()}-{link.span_id.hex()}" for link in span.links),
                    _attributes(span.attributes),
                    (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
                    span.status.code == span.status.STATUS_CODE_ERROR,
                )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
