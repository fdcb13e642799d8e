"""What the gateway counts of itself, for Prometheus."""

from __future__ import annotations

import time
from typing import Final, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainwire.gateway.http.timeouts import Cut
from trainwire.schemas.prometheus_metrics import GATEWAY_CUTS, GATEWAY_REQUESTS, GATEWAY_SECONDS

NO_ROUTE: Final = "none"


class Telemetry:
    """The counts of one gateway, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        requests, seconds, cuts = GATEWAY_REQUESTS, GATEWAY_SECONDS, GATEWAY_CUTS
        self._requests = Counter(requests.name, requests.help, requests.labels, registry=self.registry)
        self._duration = Histogram(seconds.name, seconds.help, seconds.labels, registry=self.registry)
        self._cuts = Counter(cuts.name, cuts.help, cuts.labels, registry=self.registry)
        for reason in get_args(Cut):
            self._cuts.labels(reason)

    def text(self) -> bytes:
        """Return all counts as Prometheus reads them."""
        return generate_latest(self.registry)

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request; methods that are none are one."""
        known = method if method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} else "other"
        self._requests.labels(known, route, str(status)).inc()
        self._duration.labels(route).observe(seconds)

    def count_cut(self, reason: Cut) -> None:
        """Count a connection that was ended because of what its client did not do."""
        self._cuts.labels(reason).inc()

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """Return the application with its requests counted, by the route and never by the path."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            began, status = time.monotonic(), 500

            async def noted(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            try:
                await app(scope, receive, noted)
            finally:
                route = getattr(scope.get("route"), "path", NO_ROUTE)
                self.count(scope["method"], route, status, time.monotonic() - began)

        return counted
