"""The span of a run (docs/tracing.md). Imported only if the environment names a collector of OpenTelemetry.

The SDK is used without its batch processor, whose thread would be started again in each fork of the training.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import socket
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from trainwire.ingest.process.daemon_pool import message_of, start_daemon
from trainwire.ingest.process.forks import importing
from trainwire.ingest.process.log_filter import OWN_THREADS, is_own_thread
from trainwire.ingest.settings.setting_groups import TraceSettings
from trainwire.schemas.extras import install_command
from trainwire.schemas.tracing import ENDPOINT_VARIABLE

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import Span

logger = logging.getLogger("trainwire.ingest")

EXPORT_WAIT_S: Final = 2.0
"""Longest time in seconds for which the end of a run waits for the collector."""
_NOT_INSTALLED: Final = f"{ENDPOINT_VARIABLE} is set, which needs: {install_command('otel')}"
_warned_of: Final[set[str]] = set()


class RunTrace:
    """The span of one run, exported at its end by a daemon thread, so that no collector can delay the training.

    The thread starts with the run: while the interpreter exits, no thread can be started, and imports fail.
    """

    def __init__(self, span: Span, job_id: int) -> None:
        from opentelemetry.trace import format_span_id, format_trace_id  # noqa: PLC0415 - an extra

        self._span = span
        self._job_id = job_id
        context = span.get_span_context()
        self.traceparent = (
            f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}-{context.trace_flags:02x}"
        )
        """Identifies the span; the messages of the run contain it."""
        self._has_ended = threading.Event()
        self._is_exported = threading.Event()
        if context.trace_flags.sampled:
            start_daemon(self._export_when_ended, f"{OWN_THREADS}trace")
        else:
            self._is_exported.set()

    def end(self, status: str | None, exit_code: int | None) -> None:
        """End the span with the result of the run, and begin to export it; further calls change nothing."""
        if self._has_ended.is_set():
            return
        try:
            self._end_span(status, exit_code)
        except Exception as exc:
            # An error of the SDK must not prevent the messages of the run from being sent.
            logger.debug("unexpected while the span of the run was ended", exc_info=True)
            self._warn(message_of(exc))
        finally:
            self._has_ended.set()

    def await_export(self, timeout_s: float) -> None:
        """Wait until the span is exported, for `EXPORT_WAIT_S` and `timeout_s` at most."""
        if not self._is_exported.wait(max(0.0, min(EXPORT_WAIT_S, timeout_s))):
            self._warn("the collector does not answer")
            self._is_exported.set()  # later calls do not wait again

    def _end_span(self, status: str | None, exit_code: int | None) -> None:
        from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415 - an extra

        is_failed = status == "failed" or bool(exit_code)
        self._span.set_attribute("trainwire.status", "failed" if is_failed else status or "completed")
        if exit_code is not None:
            self._span.set_attribute("trainwire.exit_code", exit_code)
        if is_failed:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()

    def _export_when_ended(self) -> None:
        try:
            with importing():
                from opentelemetry import context  # noqa: PLC0415 - an extra
                from opentelemetry.exporter.otlp.proto.http import trace_exporter  # noqa: PLC0415 - takes 0.1 s
                from opentelemetry.sdk.trace.export import SpanExportResult  # noqa: PLC0415 - as above
            exporter = trace_exporter.OTLPSpanExporter()
            for name in list(logging.root.manager.loggerDict):
                if name.startswith(("opentelemetry.", "urllib3.")):
                    logging.getLogger(name).addFilter(_is_of_training)
            # As the processors of the SDK do: a training may trace its HTTP requests.
            context.attach(context.set_value(context._SUPPRESS_INSTRUMENTATION_KEY, True))  # noqa: SLF001
            self._has_ended.wait()
            span: ReadableSpan = self._span  # type: ignore[assignment]  # a sampled span is one of the SDK
            if exporter.export([span]) is not SpanExportResult.SUCCESS:
                self._warn("the collector has not accepted it")
        except ImportError:
            warn_once(f"{_NOT_INSTALLED}; the span of the run is not exported")
        finally:
            self._is_exported.set()

    def _warn(self, reason: str) -> None:
        warn_once(f"job {self._job_id}: the span of the run was not exported: {reason}")


def begin_trace(settings: TraceSettings, job_id: int, place: Mapping[str, Any]) -> RunTrace | None:
    """Begin the span of the run of job `job_id`; return None, with one warning, if it cannot be traced.

    It joins the trace of the current span of the training, or else that of the process that started this one.
    `place` has the rank, the number of ranks, and whether this is a launcher.
    """
    if settings.problem is not None:
        warn_once(f"{settings.problem}: the run is not traced")
        return None
    try:
        return RunTrace(_begin_span(settings, {"job_id": job_id, **place}), job_id)
    except ImportError:
        warn_once(f"{_NOT_INSTALLED}; the run is not traced")
    except Exception as exc:
        # The SDK rejects the value of a variable, or no thread can be started: the training runs without a trace.
        logger.debug("unexpected while the span of the run was begun", exc_info=True)
        warn_once(f"the run is not traced: {message_of(exc)}")
    return None


def _begin_span(settings: TraceSettings, attributes: Mapping[str, Any]) -> Span:
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415 - an extra
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - as above

    # Not Resource.create, which searches the entry points of all installed packages.
    resource = Resource(
        {
            "service.name": "trainwire-trainer",
            "service.version": importlib.metadata.version("trainwire"),
            "host.name": socket.gethostname(),
            "process.pid": os.getpid(),
        }
    ).merge(OTELResourceDetector().detect())
    # Not the provider of the training, whose processors may export spans at once, in the thread that ends them.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    named = {f"trainwire.{name}": value for name, value in attributes.items() if value is not None}
    return provider.get_tracer("trainwire").start_span("run", _cause(settings.caused_by), attributes=named)


def _cause(traceparent: str | None) -> Context | None:
    """Return the context of the current span; without one, that of the span that `traceparent` identifies."""
    from opentelemetry.trace import get_current_span  # noqa: PLC0415 - an extra
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415 - as above

    if traceparent is None or get_current_span().get_span_context().is_valid:
        return None
    return TraceContextTextMapPropagator().extract({"traceparent": traceparent})


def _is_of_training(_: logging.LogRecord) -> bool:
    """Return False for log records of our own threads, which log one warning instead of those of libraries."""
    return not is_own_thread()


def warn_once(text: str) -> None:
    """Log a warning, unless this process has already logged the same text."""
    if text not in _warned_of:
        _warned_of.add(text)
        logger.warning(text)
