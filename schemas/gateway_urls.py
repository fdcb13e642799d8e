"""Addresses of a gateway for trainers: `https://host[:port][/path]`, or `http://` on a network that is trusted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

from trainwire.schemas.redis_urls import MAX_PORT, is_port

SCHEMES: Final = ("https", "http")
EXAMPLE: Final = "https://host"
CA_PARAMETER: Final = "ssl_ca_certs"
"""The file of a private CA, as in the address of Redis."""


def is_gateway(url: str) -> bool:
    """Return whether an address is that of a gateway, not of Redis."""
    return url.partition("://")[0].lower() in SCHEMES


def gateway_url_problem(url: str) -> str | None:
    """Return which part of an address is wrong, and how it is written; None where it can be right.

    No part of a user name or password is in it.
    """
    return next(_problems(url), None)


def _problems(url: str) -> Iterator[str]:
    if not is_gateway(url):
        yield f"is not the address of a gateway: write {EXAMPLE} (the address of Redis goes into REDIS_URL)"
    try:
        parts = urlsplit(url)
    except ValueError as exc:
        yield f"is not an address ({exc}): write {EXAMPLE}"
        return
    if "@" in parts.netloc:
        yield "has a user or a password: write the token into TRAINWIRE_TOKEN"
    port = parts.netloc.rpartition("]")[2].partition(":")[2]
    if port and not is_port(port):
        yield f"has the port {port!r}, which is not a number from 1 to {MAX_PORT}: write {EXAMPLE}:8443"
    if not parts.hostname or any(letter.isspace() or not letter.isprintable() for letter in url):
        yield f"has no host, or a space: write {EXAMPLE}"
    if parts.fragment:
        yield f"has a # part, as the page has: write only what is before it, {EXAMPLE}"
    for name, _ in parse_qsl(parts.query, keep_blank_values=True):
        if name != CA_PARAMETER or parts.scheme.lower() != "https":
            yield f"has the parameter {name!r}: only ?{CA_PARAMETER}=/path/to/ca.pem is known, with https://"


def base_of(url: str) -> str:
    """Return scheme, host, port and path of an address, without a slash at the end."""
    parts = urlsplit(url)
    return f"{parts.scheme.lower()}://{host_and_port(parts)}{parts.path.rstrip('/')}"


def ca_file_of(url: str) -> str | None:
    """Return the file of the CA in an address."""
    return dict(parse_qsl(urlsplit(url).query)).get(CA_PARAMETER)


def host_and_port(parts: SplitResult) -> str:
    """Return host and port of an address; without the port where it is the usual one."""
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    usual = {"https": 443, "http": 80}.get(parts.scheme.lower())
    return host if parts.port in (None, usual) else f"{host}:{parts.port}"
