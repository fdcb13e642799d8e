"""Names of servers for display, for the spool and for pickles; none contains a user or a password."""

from __future__ import annotations

from urllib.parse import urlsplit

from trainwire.schemas.gateway_urls import base_of, ca_file_of, is_gateway
from trainwire.schemas.streams.urls import cluster_nodes, is_cluster


def shown_host(redis_url: str) -> str:
    """Return host and port of a Redis URL, or of all nodes of a cluster, without user and password."""
    if is_cluster(redis_url):
        return ",".join(f"{host}:{port}" for host, port in cluster_nodes(redis_url))
    parts = urlsplit(redis_url)
    return f"{parts.hostname or 'localhost'}:{parts.port or 6379}"


def shown_server(address: str | None) -> str:
    """Return the name of a server for display: "Redis at host:6379", or the address of a gateway."""
    if address is None:
        return "Redis"
    return base_of(address) if is_gateway(address) else f"Redis at {shown_host(address)}"


def public_address(address: str) -> str:
    """Return an address without user and password, and without URL parameters other than those for TLS."""
    if is_gateway(address):
        ca_file = ca_file_of(address)
        return base_of(address) + (f"?ssl_ca_certs={ca_file}" if ca_file else "")
    address, _, query = address.partition("?")
    scheme, _, rest = address.partition("://")
    tls = "&".join(part for part in query.split("&") if part.startswith("ssl_"))
    return f"{scheme}://{rest.rpartition('@')[2]}" + (f"?{tls}" if tls else "")


def server_of(address: str) -> str:
    """Return the server's name as stored in the spool: host:port/db of Redis, or the address of a gateway."""
    if is_gateway(address):
        return base_of(address)
    if is_cluster(address):
        return f"{shown_host(address)}/0"
    return f"{shown_host(address)}/{urlsplit(address).path.strip('/') or 0}"
