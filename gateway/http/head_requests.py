"""HEAD (RFC 9110, 9.3.2): what GET would answer, without the body. Pure ASGI, next to the routes."""

from __future__ import annotations

import re
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_STREAMS: Final = re.compile(r"/jobs(/[^/]*)?/events")
"""Answers without an end: nobody opens one to look at its headers."""


class _AnsweredError(Exception):
    """The answer has begun: what would follow is not wanted."""


class Heads:
    """Has the routes answer HEAD as GET, and keeps the body back; a body of many pieces is not made at all."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request."""
        if scope["type"] != "http" or _STREAMS.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
        elif scope["method"] == "HEAD":
            await self._answer_head(scope, receive, send)
        else:
            await self._app(scope, receive, _with_head_allowed(send))

    async def _answer_head(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = {**scope, "method": "GET"}

        async def without_body(message: Message) -> None:
            if message["type"] != "http.response.body":
                await send(message)
                return
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            if message.get("more_body"):
                raise _AnsweredError

        try:
            await self._app(asked, receive, without_body)
        except _AnsweredError:
            pass
        finally:
            scope.update({**asked, "method": "HEAD"})  # the route that was found, for our counts


def _with_head_allowed(send: Send) -> Send:
    """Return a `send` that says, with a refusal of another method, that HEAD may be asked where GET may."""

    async def completed(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 405:
            headers = MutableHeaders(scope=message)
            if headers.get("allow") == "GET":
                headers["allow"] = "GET, HEAD"
        await send(message)

    return completed
