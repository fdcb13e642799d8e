"""ASGI middleware: a rate limit per client address, and a size limit for request bodies."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainwire.gateway.http.problems import problem, problem_response

BURST_S: Final = 4.0
"""Seconds' worth of requests that a client may send at once: the web page sends several when it opens."""
MAX_CLIENTS: Final = 10_000


class RateLimit:
    """Responds with 429 to a client address that sends more than `per_s` requests per second.

    There is one token bucket per address, which allows bursts of BURST_S seconds' worth of requests. Buckets are
    kept for the MAX_CLIENTS addresses with the newest requests.
    """

    def __init__(self, app: ASGIApp, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._per_s = per_s
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point: serve the request, or respond with 429."""
        if scope["type"] not in {"http", "websocket"} or self.allows(str((scope["client"] or ("",))[0])):
            await self._app(scope, receive, send)
            return
        detail = f"more than {self._per_s:g} requests a second (GATEWAY_REQUESTS_PER_S): try again later"
        response = problem_response(problem(429, "too-many", "Too many requests", detail))
        await response(scope, receive, send)

    def allows(self, client: str) -> bool:
        """Count a request of a client address; return whether the request may be served."""
        now, most = self._clock(), self._per_s * BURST_S
        left, at = self._buckets.get(client, (most, now))
        left = min(most, left + (now - at) * self._per_s)
        is_allowed = left >= 1
        self._buckets[client] = (left - is_allowed, now)
        self._buckets.move_to_end(client)
        if len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)
        return is_allowed


class BodyLimit:
    """Responds with 413 to a request body of more than `max_bytes`, with or without a Content-Length."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point: serve the request, or respond with 413."""
        length = _content_length(scope) if scope["type"] == "http" else 0
        if length is None:
            body = await self._buffered(receive)
        else:
            body = receive if length <= self._max_bytes else None
        if body is None:
            detail = f"the body has more than {self._max_bytes} bytes (GATEWAY_MAX_BODY_BYTES): send it in pieces"
            response = problem_response(problem(413, "too-large", "The body is too large", detail))
            await response(scope, receive, send)
            return
        await self._app(scope, body, send)

    async def _buffered(self, receive: Receive) -> Receive | None:
        """Read a body of unknown length; return a `receive` that replays it, or None if it is too large."""
        messages: list[Message] = []
        size = 0
        while not messages or messages[-1].get("more_body"):
            messages.append(await receive())
            size += len(messages[-1].get("body", b""))
            if size > self._max_bytes:
                return None
        buffered = iter(messages)

        async def repeat() -> Message:
            return next(buffered, None) or await receive()

        return repeat


def _content_length(scope: Scope) -> int | None:
    """Return the Content-Length of a request, 0 without that header; None if the length of the body is unknown."""
    headers = dict(scope["headers"])
    if b"transfer-encoding" in headers:
        return None
    length = headers.get(b"content-length", b"0")
    return int(length) if length.isdigit() and len(length) < 20 else None
