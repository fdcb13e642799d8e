"""The address of Redis as kombu must be told it: left alone, it does not verify the certificate of a server."""

from __future__ import annotations

from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from redis.connection import parse_url

_TLS_PREFIX: Final = "ssl_"


class Broker(NamedTuple):
    """What `kombu.Connection` takes: an address without parameters, and those of TLS, None where there is none."""

    url: str
    ssl: dict[str, Any] | None


def broker_at(redis_url: str) -> Broker:
    """Return where kombu finds the Redis of an address, with TLS exactly as redis-py would have it.

    kombu does not verify the certificate of a `rediss://` that says nothing more, and stumbles over parameters
    that it does not know. Raises `ValueError` for an address that redis-py does not understand.
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
