"""Redis URLs for kombu, which by default does not verify the server's certificate."""

from __future__ import annotations

from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from redis.connection import parse_url

_TLS_PREFIX: Final = "ssl_"


class Broker(NamedTuple):
    """Arguments of `kombu.Connection`: a URL without parameters, and the TLS parameters (None without TLS)."""

    url: str
    ssl: dict[str, Any] | None


def broker_at(redis_url: str) -> Broker:
    """Return the broker URL and TLS parameters for kombu, equivalent to `redis_url` in redis-py.

    Without TLS parameters kombu does not verify the certificate of a `rediss://` URL; it fails on URL parameters
    it does not know. A URL with another scheme is returned unchanged, without TLS parameters. Raises `ValueError`
    for a Redis URL that redis-py cannot parse.
    """
    parts = urlsplit(redis_url)
    if parts.scheme not in {"redis", "rediss"}:
        return Broker(redis_url, None)
    options: dict[str, Any] = parse_url(redis_url)  # type: ignore[no-untyped-call]
    url = parts._replace(path=f"/{options.get('db', 0)}", query="", fragment="").geturl()
    if parts.scheme == "redis":
        return Broker(url, None)
    tls = {name: value for name, value in options.items() if name.startswith(_TLS_PREFIX)}
    return Broker(url, {"ssl_cert_reqs": "required", **tls})
