"""Creates spans with the SDK of OpenTelemetry. Imported only by processes that are traced (`stores.tracing`)."""

from __future__ import annotations

import importlib.metadata
import os
import socket
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    format_span_id,
    format_trace_id,
    get_current_span,
    set_span_in_context,
    use_span,
)

FLUSH_S: Final = 2.0
"""Longest time in seconds for which the end of a process waits for the collector."""
_IDS: Final = "trainwire_trace_ids"
"""Attribute of an exception with the ids of the span that it ended."""
MAX_LINKS: Final = 128
"""Maximum number of links of a span; it is also the default limit of OpenTelemetry."""


class SlowSpans(BatchSpanProcessor):
    """Exports the spans that took at least `slow_s` seconds, in batches, and drops all others."""

    def __init__(self, slow_s: float) -> None:
        super().__init__(OTLPSpanExporter())
        self._slow_ns = slow_s * 1e9

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a finished span for the export, if it was slow."""
        if (span.end_time or 0) - (span.start_time or 0) >= self._slow_ns:
            super().on_end(span)


class Spans:
    """Creates the spans of one process. Each forked child gets a tracer provider of its own with its first span.

    The thread that exports spans does not survive a fork, and an open connection must not be shared. The
    constructor raises `ValueError` for an unusable variable of OpenTelemetry.
    """

    def __init__(self, service: str, slow_s: float) -> None:
        self._slow_s = slow_s
        # Not Resource.create, which searches the entry points of all installed packages.
        self._resource = Resource(
            {
                "service.name": service,
                "service.version": importlib.metadata.version("trainwire"),
                "host.name": socket.gethostname(),
            }
        ).merge(OTELResourceDetector().detect())
        self._renew()
        self._tracer_provider()  # raises `ValueError` for an unusable variable
        self.flush()
        os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._provider: TracerProvider | None = None

    @contextmanager
    def span(
        self,
        name: str,
        parents: Iterable[str | None],
        began_ns: int | None,
        kind: str,
        attributes: Mapping[str, str | float | None],
    ) -> Iterator[Span]:
        """Record the block as a span; see `trainwire.stores.tracing.span`."""
        causes = [remote_context(parent) for parent in dict.fromkeys(parents) if parent is not None]
        context: Context | None = None
        if causes:
            context = Context() if len(causes) > 1 else set_span_in_context(NonRecordingSpan(causes[0]), Context())
        span = (
            self._tracer_provider()
            .get_tracer("trainwire")
            .start_span(
                name,
                context,
                SpanKind[kind.upper()],
                {f"trainwire.{key}": value for key, value in attributes.items() if value is not None},
                [Link(cause) for cause in causes[:MAX_LINKS]] if len(causes) > 1 else (),
                start_time=began_ns,
            )
        )
        with use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            try:
                yield span
            except Exception as exc:
                # Not its text, which may contain data of a training.
                span.set_status(Status(StatusCode.ERROR, type(exc).__name__))
                vars(exc).setdefault(_IDS, self.ids())
                raise

    def ids(self) -> dict[str, str | int]:
        """Return the trace_id and span_id of the current span in hexadecimal digits, and its job_id if it has one.

        In an `except` block outside of a span, they are those of the span that the exception ended. Returns an
        empty dict if there is no such span.
        """
        span = get_current_span()
        context = span.get_span_context()
        if not context.is_valid:
            return dict(getattr(sys.exc_info()[1], _IDS, {}))
        ids: dict[str, str | int] = {
            "trace_id": format_trace_id(context.trace_id),
            "span_id": format_span_id(context.span_id),
        }
        job_id = (getattr(span, "attributes", None) or {}).get("trainwire.job_id")
        return ids if job_id is None else {**ids, "job_id": job_id}

    def flush(self) -> None:
        """Export the finished spans of this process, for `FLUSH_S` seconds at most, and end its provider."""
        with self._lock:
            provider, self._provider = self._provider, None
        if provider is not None:
            # In a thread: the timeouts of the SDK do not limit an export that has begun.
            closing = threading.Thread(target=provider.shutdown, daemon=True)
            closing.start()
            closing.join(FLUSH_S)

    def _tracer_provider(self) -> TracerProvider:
        with self._lock:
            if self._provider is None:
                resource = self._resource.merge(Resource({"process.pid": os.getpid()}))
                self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
                self._provider.add_span_processor(SlowSpans(self._slow_s))
            return self._provider


def remote_context(traceparent: str) -> SpanContext:
    """Return the span of another process that a valid `traceparent` of version 00 identifies."""
    _, trace_id, span_id, flags = traceparent.split("-")
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
