"""URLs of a single Redis server: `redis://[user:password@]host[:port][/database]`, or `rediss://` with TLS."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import parse_qs, urlsplit

EXAMPLE: Final = "redis://host:6379/0"
MAX_PORT: Final = 65_535
MOST_SHOWN_CHARS: Final = 5


def redis_url_problem(url: str) -> str | None:
    """Return an error text that names the invalid part of a Redis URL and its right form; None if it is valid.

    The text contains no part of a password that stands before an @.
    """
    return next(_problems(url), None)


def _problems(url: str) -> Iterator[str]:
    scheme, _, rest = url.partition("://")
    if scheme == "unix":
        # kombu.transport.TRANSPORT_ALIASES has none of this name.
        yield (
            "is a Unix socket, which neither Celery's broker nor trainers can use: let the server listen on a "
            "port too (port 6379, bind 127.0.0.1), and write redis://127.0.0.1:6379/0"
        )
    if scheme not in ("redis", "rediss") or not rest:
        yield f"is not a Redis address: write {EXAMPLE}, or rediss://host:6379/0 with TLS"
    try:
        parts = urlsplit(url)
    except ValueError:
        yield f"is not a Redis address: write {EXAMPLE}"  # not the reason: it has the password
        return
    if "@" in rest and "@" not in parts.netloc:
        yield "has a /, ? or # before its @: write %2F, %3F or %23 for it in the password"
    host = parts.netloc.rpartition("@")[2]
    port = host.rpartition("]")[2].partition(":")[2]
    if any(letter.isspace() for letter in host):
        yield f"has a space in its host {host!r}: write {EXAMPLE}"
    if host.startswith(":") and not is_port(port):
        yield f"names no host: write {EXAMPLE}"  # a password without @ is not repeated
    if port and not is_port(port):
        yield f"{port_problem(port)}: write {EXAMPLE}"
    for database in filter(None, [parts.path[1:], *parse_qs(parts.query).get("db", [])]):
        if not (database.isascii() and database.isdecimal()):
            yield f"has the database {database!r}, which is not a number: write {EXAMPLE}"


def port_problem(port: str) -> str:
    """Return the beginning of an error text about a port; it repeats no long text, which may be a password."""
    shown = f"the port {port!r}, which" if len(port) <= MOST_SHOWN_CHARS else "a port that"
    return f"has {shown} is not a number from 1 to {MAX_PORT}"


def is_port(text: str) -> bool:
    """Return whether `text` is a port number, 1 to MAX_PORT."""
    return text.isascii() and text.isdecimal() and len(text) <= 5 and 1 <= int(text) <= MAX_PORT


def shown_url(url: str) -> str:
    """Return the URL without user, password and parameters.

    A rest that begins with a colon is left out too, because it may be a password without its @.
    """
    scheme, separator, rest = url.rpartition("://")
    host = rest.rpartition("@")[2].partition("?")[0]
    return f"{scheme}{separator}{'' if host.startswith(':') else host}"
