"""ASGI middleware: security headers, and checks of the Host and Origin headers before a request is parsed."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainwire.gateway.http.problems import problem, problem_response, shown
from trainwire.stores.local_hosts import is_loopback

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class SecurityHeaders:
    """Adds security headers to each response.

    Also adds `Cache-Control: no-store`, except to files of the web page and to responses that have the header.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point: serve the request, and add the headers to its response."""

        async def with_headers(message: Message) -> None:
            if message["type"] in {"http.response.start", "websocket.http.response.start"}:
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if not scope["path"].startswith("/page/"):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, with_headers)


class Origins:
    """Refuses requests from other origins that use WebSockets or methods other than SAFE_METHODS.

    If `loopback_only` is True, also refuses requests whose Host header is not a loopback address or `localhost`.
    That prevents DNS rebinding: a foreign name that resolves to this machine would give its pages the same origin
    as the gateway.
    """

    def __init__(self, app: ASGIApp, *, loopback_only: bool) -> None:
        self._app = app
        self._loopback_only = loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point: serve the request, or respond with 403."""
        if scope["type"] in {"http", "websocket"} and (refusal := self._refusal(HTTPConnection(scope))):
            await problem_response(problem(403, "foreign", "Foreign host or origin", refusal))(
                scope, receive, send
            )
            return
        await self._app(scope, receive, send)

    def _refusal(self, connection: HTTPConnection) -> str | None:
        host = connection.headers.get("host", "")
        if self._loopback_only and not is_loopback(_parse_origin(f"//{host}")[1]):
            return (
                f"host {shown(host)!r}: without tokens only names like localhost are allowed "
                "(GATEWAY_AUTH=on requires tokens and allows all)"
            )
        origin = connection.headers.get("origin")
        is_safe = connection.scope["type"] == "http" and connection.scope["method"] in SAFE_METHODS
        if origin is None or is_safe:
            return None
        scheme = _parse_origin(origin)[0]
        if scheme and _parse_origin(origin) == _parse_origin(f"{scheme}://{host}"):
            return None
        return (
            f"origin {shown(origin)} is not that of the Host header {shown(host)}; "
            "a proxy must pass Host on as the browser sent it (nginx: proxy_set_header Host $http_host)"
        )


def _parse_origin(url: str) -> tuple[str, str, int | None]:
    """Split a URL into scheme, host and port (default: the scheme's); an invalid URL has no scheme and host."""
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname or "", parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return "", "", None
