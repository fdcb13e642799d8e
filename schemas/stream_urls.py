"""Addresses of a Redis Cluster: `redis+cluster://[user:password@]host:port[,host:port...]`, or `rediss+cluster://`."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

CLUSTER_SCHEMES: Final = ("redis+cluster", "rediss+cluster")
DEFAULT_PORT: Final = 6379


def is_cluster(url: str) -> bool:
    """Tell whether an address is one of a Redis Cluster."""
    return url.partition("://")[0] in CLUSTER_SCHEMES


def cluster_nodes(url: str) -> list[tuple[str, int]]:
    """Return the hosts and ports; raise `ValueError` where one is none, or where a database is named."""
    _, _, rest = url.partition("://")
    hosts, _, database = rest.rpartition("@")[2].partition("/")
    found = []
    for host in hosts.split(","):
        parts = urlsplit(f"//{host}")
        if not parts.hostname or parts.port == 0:
            raise ValueError("names a host or a port that is none")
        found.append((parts.hostname, parts.port or DEFAULT_PORT))
    if database not in ("", "0"):
        raise ValueError("names a database, which a Redis Cluster has not")
    return found
