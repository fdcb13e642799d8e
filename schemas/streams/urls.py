"""URLs of a Redis Cluster, `redis+cluster://[user:password@]host:port[,host:port...]`, or `rediss+cluster://`.

The latter uses TLS and accepts redis-py's TLS parameters: `?ssl_ca_certs=/path/to/ca.pem`.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

CLUSTER_SCHEMES: Final = ("redis+cluster", "rediss+cluster")
DEFAULT_PORT: Final = 6379
TLS_PARAMETERS: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname", "ssl_cert_reqs")
_NO: Final = frozenset({"0", "f", "false", "n", "no"})
"""Values that redis-py parses as false."""


def is_cluster(url: str) -> bool:
    """Return whether the URL has the scheme of a Redis Cluster."""
    return url.partition("://")[0] in CLUSTER_SCHEMES


def cluster_nodes(url: str) -> list[tuple[str, int]]:
    """Return (host, port) of each server in the URL; a server without a port has DEFAULT_PORT.

    Raises `ValueError` for an invalid host or port, a database other than 0, or an invalid parameter
    (`cluster_tls`).
    """
    cluster_tls(url)
    _, _, rest = url.partition("?")[0].partition("://")
    hosts, _, database = rest.rpartition("@")[2].partition("/")
    found = []
    for host in hosts.split(","):
        parts = urlsplit(f"//{host}")
        if not parts.hostname or not _has_port(parts):
            raise ValueError(f"names {host!r}, which is not host:port")
        found.append((parts.hostname, parts.port or DEFAULT_PORT))
    if database not in ("", "0"):
        raise ValueError("names a database, which a Redis Cluster does not have")
    return found


def cluster_tls(url: str) -> dict[str, str | bool]:
    """Return the TLS parameters of the URL, by redis-py's names.

    Raises `ValueError` for any other parameter, for any parameter without TLS, and for a ? in the password.
    """
    address, _, query = url.partition("?")
    if "@" in query and "@" not in address:
        # The query is part of a password, which must not appear in an error.
        raise ValueError("has a ? before its @: write %3F for it in the password, and %40 for an @ behind a ?")
    found: dict[str, str | bool] = dict(parse_qsl(query, keep_blank_values=True))
    known = TLS_PARAMETERS if url.startswith("rediss") else ()
    for name in found:
        if name not in known:
            takes = (
                f"takes {', '.join(known)}" if known else "takes none without TLS: begin it with rediss+cluster://"
            )
            raise ValueError(f"has the parameter {name!r}, and {takes}")
    if "ssl_check_hostname" in found:
        found["ssl_check_hostname"] = str(found["ssl_check_hostname"]).lower() not in _NO
    return found


def _has_port(parts: SplitResult) -> bool:
    """Return whether the port is valid or absent."""
    try:
        return parts.port != 0
    except ValueError:
        return False
