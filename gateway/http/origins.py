"""What a browser may do on behalf of a page, and whose page that is. Pure ASGI, before anything is parsed."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainwire.gateway.http.problems import answer, problem, shown
from trainwire.gateway.http.proxies import is_loopback

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
    """Adds what keeps browsers from doing more with an answer than it is meant for."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request, its answer with the headers."""

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
    """Refuses what a foreign page makes a browser send, and while no token is asked for, foreign host names.

    The second stops a foreign name that is made to lead here (DNS rebinding): a browser would take the gateway
    for that page's own.
    """

    def __init__(self, app: ASGIApp, *, loopback_only: bool) -> None:
        self._app = app
        self._loopback_only = loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request, or refuse it."""
        if scope["type"] in {"http", "websocket"} and (refusal := self._refusal(HTTPConnection(scope))):
            await answer(problem(403, "foreign", "Not from here", refusal))(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, connection: HTTPConnection) -> str | None:
        host = connection.headers.get("host", "")
        if self._loopback_only and not is_loopback(_host_of(f"//{host}")[0]):
            return (
                f"host {shown(host)!r}: without tokens only names like localhost are answered "
                "(GATEWAY_AUTH=on asks for tokens)"
            )
        origin = connection.headers.get("origin")
        is_safe = connection.scope["type"] == "http" and connection.scope["method"] in SAFE_METHODS
        if origin is None or is_safe:
            return None
        scheme = urlsplit(origin).scheme if _is_url(origin) else ""
        if _host_of(origin) == _host_of(f"{scheme}://{host}") and scheme:
            return None
        return (
            f"a page of {shown(origin)} may not do this on {shown(host)}, which is the Host header; "
            "a proxy must pass that on as the browser sent it (nginx: proxy_set_header Host $http_host)"
        )


def _is_url(text: str) -> bool:
    try:
        return bool(urlsplit(text).scheme)
    except ValueError:
        return False


def _host_of(url: str) -> tuple[str, int | None]:
    """Return host and port of a URL, the scheme's own port where it names none; empty for what is none."""
    try:
        parts = urlsplit(url)
        return parts.hostname or "", parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return "", None
