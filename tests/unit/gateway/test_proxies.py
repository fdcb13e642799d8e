"""Client addresses behind proxies, from headers that any client can send."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import ip_network

import pytest
from starlette.types import Scope

from trainwire.gateway.http.proxies import TrustedProxies

TRUSTED = [ip_network(text) for text in ("127.0.0.1", "10.0.0.0/8", "fd00::/8")]


def seen(peer: str, headers: Sequence[tuple[str, str]], kind: str = "http") -> tuple[str, str]:
    """Return client address and scheme of a request as the application sees them."""
    found: list[Scope] = []

    async def app(scope: Scope, *_: object) -> None:
        found.append(scope)

    async def none(*_: object) -> None:
        raise AssertionError

    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    scheme = {"http": "http", "websocket": "ws"}[kind]
    scope = {"type": kind, "client": (peer, 4711), "scheme": scheme, "headers": raw}
    asyncio.run(TrustedProxies(app, TRUSTED)(scope, none, none))  # type: ignore[arg-type]
    return found[0]["client"][0], found[0]["scheme"]


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),  # no proxy: its header is ignored
        ("::1", ["198.51.100.1"], "::1"),
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", [""], "127.0.0.1"),
        ("127.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("127.0.0.1", ["6.6.6.6, 198.51.100.1"], "198.51.100.1"),  # the client wrote the left one
        ("127.0.0.1", ["6.6.6.6", "198.51.100.1"], "198.51.100.1"),  # in a header of its own
        ("127.0.0.1", ["6.6.6.6,198.51.100.1 , 10.1.2.3"], "198.51.100.1"),  # two proxies
        ("127.0.0.1", ["127.0.0.1, 198.51.100.1"], "198.51.100.1"),  # a client that names a proxy
        ("127.0.0.1", ["10.0.0.7, 10.1.2.3"], "10.0.0.7"),  # the client is a proxy's host
        ("127.0.0.1", ["198.51.100.1:5050"], "198.51.100.1"),
        ("127.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        ("127.0.0.1", ["[2001:DB8:0::1]:5050"], "2001:db8::1"),
        ("fd00::2", ["2001:db8::1"], "2001:db8::1"),
        ("::ffff:127.0.0.1", ["::ffff:198.51.100.1"], "198.51.100.1"),
        ("127.0.0.1", ["unknown"], "127.0.0.1"),  # garbage is no address to count by
        ("127.0.0.1", ["6.6.6.6, _hidden"], "127.0.0.1"),
        ("127.0.0.1", ["6.6.6.6, unknown, 10.1.2.3"], "10.1.2.3"),
        ("127.0.0.1", ["x" * 9000 + "," * 9000], "127.0.0.1"),
        ("127.0.0.1", ["198.51.100.1, "], "127.0.0.1"),
    ],
)
def test_the_client_is_the_last_address_that_no_trusted_proxy_has(
    peer: str, forwarded: list[str], client: str
) -> None:
    """X-Forwarded-For is read from its right end, and from trusted proxies only."""
    assert seen(peer, [("X-Forwarded-For", value) for value in forwarded])[0] == client


@pytest.mark.parametrize(
    ("peer", "proto", "kind", "scheme"),
    [
        ("127.0.0.1", ["https"], "http", "https"),
        ("127.0.0.1", ["https"], "websocket", "wss"),
        ("127.0.0.1", ["http"], "http", "http"),
        ("127.0.0.1", ["gopher"], "http", "http"),
        ("127.0.0.1", ["https", "http"], "http", "http"),
        ("203.0.113.9", ["https"], "http", "http"),
    ],
)
def test_only_a_trusted_proxy_names_the_scheme(peer: str, proto: list[str], kind: str, scheme: str) -> None:
    """X-Forwarded-Proto is used if a trusted proxy sends one value."""
    assert seen(peer, [("X-Forwarded-Proto", value) for value in proto], kind)[1] == scheme
