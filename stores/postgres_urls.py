"""DATABASE_URL: one server, or several as libpq has them (`postgresql://user:password@h1:5432,h2:5433/database`)."""

from __future__ import annotations

import re
from typing import Final

from sqlalchemy import URL, make_url

from trainwire.schemas.redis_urls import is_port

DEFAULT_PORT: Final = 5432
_URL: Final = re.compile(r"(?P<scheme>[\w+]+)://(?:(?P<user>[^/?]*)@)?(?P<hosts>[^/?@]*)(?P<rest>.*)")
_HOST: Final = re.compile(r"(?:\[(?P<address>[^\]]+)\]|(?P<name>[^:\[\]]*))(?::(?P<port>\d*))?")


def parse_postgres_url(text: str) -> URL:
    """Return the URL with our driver; several hosts become `host` and `port` of its query, as SQLAlchemy has them.

    Raises `ValueError` where it is none.
    """
    parts = _URL.fullmatch(text)
    if parts is None or "," not in parts["hosts"]:
        return _with_driver(make_url(text))
    found = [_HOST.fullmatch(host) for host in parts["hosts"].split(",")]
    servers = [(host["address"] or host["name"], host["port"]) for host in found if host is not None]
    if len(servers) < len(found):
        raise ValueError("several hosts are h1:5432,h2:5433")
    user = "" if parts["user"] is None else f"{parts['user']}@"
    rest = parts["rest"] if parts["rest"].startswith("/") else f"/{parts['rest']}"
    url = make_url(f"{parts['scheme']}://{user}{rest}")
    hosts = {
        "host": ",".join(name or "localhost" for name, _ in servers),
        "port": ",".join(port or str(DEFAULT_PORT) for _, port in servers),
    }
    return _with_driver(url.update_query_dict(hosts))


def wrong_port(text: str) -> str | None:
    """Return the first port of a URL with `@` that is none; None where all can be right.

    Without `@` a word behind a colon may be a password, and no error may repeat that.
    """
    _, has_user, rest = text.rpartition("@")
    hosts = re.split("[/?]", rest)[0] if has_user else ""
    ports = [
        host.rpartition("]")[2].partition(":")[2] for host in hosts.split(",") if "[" not in host or "]" in host
    ]
    return next((port for port in ports if port and not is_port(port)), None)


def shown_servers(url: URL) -> str:
    """Return `host:port` of each server of a parsed URL, with commas between; no password."""
    hosts, ports = url.query.get("host"), url.query.get("port")
    if hosts is None:
        return f"{url.host or 'localhost'}:{url.port or DEFAULT_PORT}"
    names = hosts.split(",") if isinstance(hosts, str) else list(hosts)
    numbers = ports.split(",") if isinstance(ports, str) else list(ports or ())
    if not numbers:  # ?host=h1:5432&host=h2:5433, or the folder of a socket
        return ", ".join(names)
    return ", ".join(f"{name}:{port}" for name, port in zip(names, numbers, strict=False))


def _with_driver(url: URL) -> URL:
    return (
        url.set(drivername="postgresql+psycopg") if url.get_backend_name() in {"postgresql", "postgres"} else url
    )
