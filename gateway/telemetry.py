"""The gateway's own metrics for Prometheus."""

from __future__ import annotations

import time
from typing import Final, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainwire.gateway.http.timeouts import Cut
from trainwire.schemas.prometheus_metrics import GATEWAY_CUTS, GATEWAY_REQUESTS, GATEWAY_SECONDS

NO_ROUTE: Final = "none"
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Telemetry:
    """The Prometheus metrics of one gateway process, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        requests, seconds, cuts = GATEWAY_REQUESTS, GATEWAY_SECONDS, GATEWAY_CUTS
        self._requests = Counter(requests.name, requests.help, requests.labels, registry=self.registry)
        self._duration = Histogram(seconds.name, seconds.help, seconds.labels, registry=self.registry)
        self._cuts = Counter(cuts.name, cuts.help, cuts.labels, registry=self.registry)
        for reason in get_args(Cut):
            self._cuts.labels(reason)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def count_cut(self, reason: Cut) -> None:
        """Increment, for `reason`, the counter of connections closed because their client was too slow."""
        self._cuts.labels(reason).inc()

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """Wrap `app` to count requests by method, route and status, and to measure their duration by route.

        An unknown method is counted as `other`, and a path without a route as `none`: label values must be
        bounded.
        """

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            began_at, status = time.monotonic(), 500

            async def send_counted(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            try:
                await app(scope, receive, send_counted)
            finally:
                route = getattr(scope.get("route"), "path", NO_ROUTE)
                method = method_of(scope)
                self._requests.labels(method, route, str(status)).inc()
                self._duration.labels(route).observe(time.monotonic() - began_at)

        return counted


def method_of(scope: Scope) -> str:
    """Return the method of a request; `other` for unknown ones, because clients can invent any number of them."""
    return str(scope["method"]) if scope["method"] in METHODS else "other"
