"""How much one client may ask: requests a second, and bytes of a body. Pure ASGI, before anything is parsed."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainwire.gateway.http.problems import answer, problem

BURST_S: Final = 4.0
"""How many seconds' worth of requests may come at once: a page asks for several things when it opens."""
MOST_CLIENTS: Final = 10_000


class RateLimit:
    """Answers 429 to a client address that asks too often: a token bucket for each."""

    def __init__(self, app: ASGIApp, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._per_s = per_s
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request, or refuse it."""
        if scope["type"] not in {"http", "websocket"} or self.takes(str((scope["client"] or ("",))[0])):
            await self._app(scope, receive, send)
            return
        detail = f"more than {self._per_s:g} requests a second (GATEWAY_REQUESTS_PER_S): wait a moment"
        await answer(problem(429, "too-many", "Too many requests", detail))(scope, receive, send)

    def takes(self, client: str) -> bool:
        """Count a request of a client; return whether it may be served."""
        now, most = self._clock(), self._per_s * BURST_S
        left, at = self._buckets.get(client, (most, now))
        left = min(most, left + (now - at) * self._per_s)
        is_taken = left >= 1
        self._buckets[client] = (left - is_taken, now)
        self._buckets.move_to_end(client)
        if len(self._buckets) > MOST_CLIENTS:
            self._buckets.popitem(last=False)
        return is_taken


class BodyLimit:
    """Answers 413 to a body that is too large, whether or not its length was said."""

    def __init__(self, app: ASGIApp, most_bytes: int) -> None:
        self._app = app
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request, or refuse it."""
        said = _length(scope) if scope["type"] == "http" else 0
        if said is None:
            read = await self._read(receive)
        else:
            read = receive if said <= self._most_bytes else None
        if read is None:
            detail = f"the body is over {self._most_bytes} bytes (GATEWAY_MAX_BODY_BYTES): send it in pieces"
            await answer(problem(413, "too-large", "The body is too large", detail))(scope, receive, send)
            return
        await self._app(scope, read, send)

    async def _read(self, receive: Receive) -> Receive | None:
        """Take a body of unsaid length as far as it may go, and give it again; None for one that is too large."""
        messages: list[Message] = []
        size = 0
        while not messages or messages[-1].get("more_body"):
            messages.append(await receive())
            size += len(messages[-1].get("body", b""))
            if size > self._most_bytes:
                return None
        given = iter(messages)

        async def again() -> Message:
            return next(given, None) or await receive()

        return again


def _length(scope: Scope) -> int | None:
    """Return how long the body is; None where that is not said."""
    headers = dict(scope["headers"])
    if b"transfer-encoding" in headers:
        return None
    said = headers.get(b"content-length", b"0")
    return int(said) if said.isdigit() and len(said) < 20 else None
