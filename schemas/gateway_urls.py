"""Checks and parses gateway URLs for trainers: `https://host[:port][/path]`, or `http://` in a trusted network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

from trainwire.schemas.streams.redis_urls import is_port, port_problem

SCHEMES: Final = ("https", "http")
EXAMPLE: Final = "https://host"
CA_PARAMETER: Final = "ssl_ca_certs"
"""URL parameter with the path of a private CA's certificate file; its name is the same as in a Redis URL."""


def is_gateway(url: str) -> bool:
    """Return whether the URL has the scheme of a gateway, `https` or `http`; Redis has other schemes."""
    return url.partition("://")[0].lower() in SCHEMES


def gateway_url_problem(url: str) -> str | None:
    """Return an error text that names the invalid part of a gateway URL and its right form; None if it is valid.

    The text contains no user name or password that stands before an @.
    """
    return next(_problems(url), None)


def _problems(url: str) -> Iterator[str]:
    if not is_gateway(url):
        yield f"is not the address of a gateway: write {EXAMPLE} (the address of Redis goes into REDIS_URL)"
    try:
        parts = urlsplit(url)
    except ValueError:
        yield f"is not an address: write {EXAMPLE}"  # not the reason: it may have a password
        return
    if "@" in parts.netloc:
        yield "has a user or a password: write the token into TRAINWIRE_TOKEN"
    port = parts.netloc.rpartition("]")[2].partition(":")[2]
    if port and not is_port(port):
        yield f"{port_problem(port)}: write {EXAMPLE}:8443"
    if not parts.hostname or any(letter.isspace() or not letter.isprintable() for letter in url):
        yield f"has no host, or a space: write {EXAMPLE}"
    if parts.fragment:
        yield f"has a # part, as the page has: write only what is before it, {EXAMPLE}"
    for name, _ in parse_qsl(parts.query, keep_blank_values=True):
        if name != CA_PARAMETER or parts.scheme.lower() != "https":
            yield f"has the parameter {name!r}: only ?{CA_PARAMETER}=/path/to/ca.pem is known, with https://"


def base_of(url: str) -> str:
    """Return scheme, host, port (if not the scheme's default) and path of the URL, without a trailing slash."""
    parts = urlsplit(url)
    return f"{parts.scheme.lower()}://{host_and_port(parts)}{parts.path.rstrip('/')}"


def ca_file_of(url: str) -> str | None:
    """Return the path of the CA file in the URL's parameter CA_PARAMETER; None if it has none."""
    return dict(parse_qsl(urlsplit(url).query)).get(CA_PARAMETER)


def host_and_port(parts: SplitResult) -> str:
    """Return `host:port` of a URL, or only the host if the port is absent or the scheme's default."""
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    usual = {"https": 443, "http": 80}.get(parts.scheme.lower())
    return host if parts.port in (None, usual) else f"{host}:{parts.port}"
