"""Records each request as a span; installed only if the gateway is traced (docs/tracing.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainwire.gateway.telemetry import NO_ROUTE, method_of
from trainwire.schemas.tracing import TRACEPARENT, checked_traceparent
from trainwire.stores.tracing import span

if TYPE_CHECKING:
    from opentelemetry.trace import Span


def request_spans(app: ASGIApp) -> ASGIApp:
    """Wrap `app` to record each HTTP request as a span, which joins the trace in its header `traceparent`.

    An invalid header, or two of them, are ignored. Server-sent events count up to the beginning of the response:
    they last as long as the browser follows the job.
    """

    async def traced(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        given = Headers(scope=scope).getlist(TRACEPARENT)
        parent = checked_traceparent(given[0]) if len(given) == 1 else None
        with span(method_of(scope), [parent], kind="server") as request:

            async def send_traced(message: Message) -> None:
                if message["type"] == "http.response.start":
                    _describe(request, scope, message["status"])
                    if Headers(raw=message["headers"]).get("content-type", "").startswith("text/event-stream"):
                        request.end()
                await send(message)

            try:
                await app(scope, receive, send_traced)
            except BaseException:
                _describe(request, scope, 500)
                raise

    return traced


def _describe(request: Span, scope: Scope, status: int) -> None:
    """Name the span after the route of its request, which is known once the response begins."""
    if not request.is_recording():
        return
    method = method_of(scope)
    route = getattr(scope.get("route"), "path", NO_ROUTE)
    request.update_name(f"{method} {route}")
    request.set_attributes(
        {"http.request.method": method, "http.route": route, "http.response.status_code": status}
    )
    job_id = scope.get("path_params", {}).get("job_id")
    if job_id is not None:
        request.set_attribute("trainwire.job_id", str(job_id))
