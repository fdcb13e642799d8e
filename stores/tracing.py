"""Traces the work of this process, if the environment names an OpenTelemetry collector (docs/tracing.md).

Without one, no package of OpenTelemetry is imported, and `span` returns a context manager that does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Final

from trainwire.schemas.extras import install_command
from trainwire.schemas.tracing import ENDPOINT_VARIABLE, export_problem, is_exporting
from trainwire.stores.settings import StoreSettings, WrongSettings

if TYPE_CHECKING:
    from trainwire.stores.otel_spans import Spans

_OFF: Final = nullcontext()
_spans: Spans | None = None
"""The spans of this process; None if it is not traced."""


def trace_process(settings: StoreSettings, process: str, environ: Mapping[str, str] = os.environ) -> None:
    """Export the slow spans of this process and of its forked children from now on, if a collector is named.

    `process` is the name of the process in the traces, `trainwire-<process>`, unless OTEL_SERVICE_NAME is set.
    Raises `WrongSettings` if the packages are not installed, or if a variable has an unusable value.
    """
    global _spans  # noqa: PLW0603 - as the tracer provider of OpenTelemetry itself: one for each process
    if not is_exporting(environ):
        return
    if (problem := export_problem(environ)) is not None:
        raise WrongSettings(problem)
    try:
        from trainwire.stores.otel_spans import Spans  # noqa: PLC0415 - imports the packages of an extra
    except ImportError as exc:
        raise WrongSettings(f"{ENDPOINT_VARIABLE} is set, which needs: {install_command('otel')}") from exc
    try:
        _spans = Spans(f"trainwire-{process}", settings.trace_slow_s)
    except ValueError as exc:
        raise WrongSettings(f"a variable of OpenTelemetry (OTEL_...) is unusable: {exc}") from exc


def is_tracing() -> bool:
    """Return whether this process is traced."""
    return _spans is not None


def span(
    name: str,
    parents: Iterable[str | None] = (),
    *,
    began_ns: int | None = None,
    kind: str = "internal",
    **attributes: str | float | None,
) -> AbstractContextManager[Any]:
    """Return a context manager that records its block as a span; with tracing off, one that does nothing.

    Args:
        name: name of the span.
        parents: valid `traceparent` texts of the spans that caused this one. With one, it is the parent of the
            new span. With several different ones, the new span begins a trace of its own, and has a link to each.
            Without any, the parent is the current span, if there is one.
        began_ns: the start in nanoseconds since 1970; None: now.
        kind: the span's kind in OpenTelemetry: internal, server, client, producer or consumer.
        attributes: attributes of the span, stored as `trainwire.<name>`; those with the value None are left out.
    """
    if _spans is None:
        return _OFF
    return _spans.span(name, parents, began_ns, kind, attributes)


def flush() -> None:
    """Export the finished spans, for `FLUSH_S` seconds at most; called when the process ends."""
    if _spans is not None:
        _spans.flush()


def add_trace_ids(_logger: object, _method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add trace_id, span_id and job_id of the current span to a log event; a processor of structlog.

    An event that is logged in an `except` block outside of a span gets those of the span that the exception ended.
    """
    if _spans is not None:
        for name, value in _spans.ids().items():
            fields.setdefault(name, value)
    return fields
