"""ASGI middleware for requests through proxies: client address, scheme and path prefix.

It runs before the other middleware.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

SECURE: Final = {"http": "https", "ws": "wss"}


class TrustedProxies:
    """Replaces the client address and the scheme of a request with those that a trusted proxy has forwarded.

    Each proxy appends the address of its peer to X-Forwarded-For, so the header is read from its right end: the
    client is the first address that belongs to no trusted proxy. Addresses to the left of it come from the client
    itself and are ignored, as are all headers of a peer that is no trusted proxy.
    """

    def __init__(self, app: ASGIApp, trusted: Sequence[Network]) -> None:
        self._app = app
        self._trusted = trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point: serve the request with the forwarded client address and scheme."""
        peer = parse_address(str((scope.get("client") or ("",))[0]))
        if scope["type"] in {"http", "websocket"} and peer is not None and self._is_trusted(peer):
            headers = HTTPConnection(scope).headers
            client = self._client(peer, headers.getlist("x-forwarded-for"))
            scope = {**scope, "client": (str(client), 0)}
            if [proto.strip() for proto in headers.getlist("x-forwarded-proto")] in (["https"], ["wss"]):
                scope["scheme"] = SECURE.get(scope["scheme"], scope["scheme"])
        await self._app(scope, receive, send)

    def _client(self, peer: Address, forwarded: Sequence[str]) -> Address:
        """Return the client's address: the last one in `forwarded` that does not belong to a trusted proxy."""
        client = peer
        for text in reversed(",".join(forwarded).split(",")):
            address = parse_address(text)
            if address is None:
                break  # malformed, so the addresses to the left of it are not trustworthy
            client = address
            if not self._is_trusted(address):
                break
        return client

    def _is_trusted(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


class RootPath:
    """Removes a proxy's path prefix from requests, and makes the URLs of redirects relative.

    The routes redirect only to add or remove a trailing slash, which a relative URL can express.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point: serve the request without the path prefix."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if self._root_path and f"{path}/".startswith(f"{self._root_path}/"):
            path = path.removeprefix(self._root_path) or "/"
            raw_path = scope.get("raw_path", b"").removeprefix(self._root_path.encode())
            scope = {**scope, "path": path, "raw_path": raw_path or b"/"}

        async def redirected(message: Message) -> None:
            if message["type"] == "http.response.start" and "location" in (
                headers := MutableHeaders(scope=message)
            ):
                headers["location"] = _relative(headers["location"], path)
            await send(message)

        await self._app(scope, receive, redirected)


def _relative(location: str, path: str) -> str:
    target = urlsplit(location)
    name = target.path.rstrip("/").rpartition("/")[2]
    query = f"?{target.query}" if target.query else ""
    return f"../{name}{query}" if path.endswith("/") else f"./{name}/{query}"


def parse_address(text: str) -> Address | None:
    """Parse an IP address with or without a port; return None for any other text.

    Examples: `192.0.2.1`, `192.0.2.1:443`, `2001:db8::1`, `[2001:db8::1]:443`. An IPv4 address that is written as
    IPv6 (`::ffff:192.0.2.1`) is returned as IPv4.
    """
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
