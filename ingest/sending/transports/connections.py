"""Chooses the transport, Redis or HTTPS, for an address."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainwire.schemas.gateway_urls import is_gateway

if TYPE_CHECKING:
    from trainwire.ingest.identity.origin import Origin
    from trainwire.ingest.sending.transports.transport import Transport


def open_transport(url: str, token: str | None, origin: Origin) -> Transport:
    """Return the transport for `url`, which connects at its first use.

    The first call may take 100 ms, because of imports.
    """
    if is_gateway(url):
        from trainwire.ingest.sending.transports.gateway_connection import GatewayConnection  # noqa: PLC0415

        return GatewayConnection(url, token, origin.job_id, origin.source, origin.traceparent)
    from trainwire.ingest.sending.transports.redis_connection import RedisConnection  # noqa: PLC0415

    return RedisConnection(url, origin.job_id, origin.source)
