"""ASGI middleware that supports HEAD requests (RFC 9110, 9.3.2) on every GET route."""

from __future__ import annotations

import re
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_STREAMS: Final = re.compile(r"/jobs(/[^/]*)?/events")
"""Paths of server-sent events, which do not support HEAD because their responses never end."""


class _BodyIgnoredError(Exception):
    """Raised from `send` to stop a route whose remaining response body would be discarded."""


class HeadRequests:
    """Serves HEAD as GET without the response body; a streamed response is stopped at its first chunk."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point: serve HEAD as GET, and pass on all other requests."""
        if scope["type"] != "http" or _STREAMS.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
        elif scope["method"] == "HEAD":
            await self._answer_head(scope, receive, send)
        else:
            await self._app(scope, receive, _with_head_allowed(send))

    async def _answer_head(self, scope: Scope, receive: Receive, send: Send) -> None:
        get_scope = {**scope, "method": "GET"}

        async def without_body(message: Message) -> None:
            if message["type"] != "http.response.body":
                await send(message)
                return
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            if message.get("more_body"):
                raise _BodyIgnoredError

        try:
            await self._app(get_scope, receive, without_body)
        except _BodyIgnoredError:
            pass
        finally:
            scope.update({**get_scope, "method": "HEAD"})  # with the route, for the request counts


def _with_head_allowed(send: Send) -> Send:
    """Return a `send` that adds HEAD to the `Allow` header of a 405 response."""

    async def completed(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 405:
            headers = MutableHeaders(scope=message)
            if headers.get("allow") == "GET":
                headers["allow"] = "GET, HEAD"
        await send(message)

    return completed
