"""Opens the transport, Redis or HTTPS, to the server of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainwire.ingest.process.forks import importing
from trainwire.ingest.process.log_filter import quiet_libraries
from trainwire.schemas.gateway_urls import is_gateway

if TYPE_CHECKING:
    from trainwire.ingest.identity.origin import Origin
    from trainwire.ingest.sending.transports.transport import Transport
    from trainwire.ingest.servers.destinations import Destination


class ServerConnection:
    """The connection of one source to a server whose address may change, such as that of a `trainwire up`."""

    def __init__(self, destination: Destination, origin: Origin) -> None:
        self._destination = destination
        self._origin = origin
        self._is_located = False
        self.address: str | None = None
        """The last known address of the server; None before the first call of `open`."""
        self.transport: Transport | None = None
        """The transport to this address, once `open` has created it."""

    def open(self) -> Transport:
        """Return the transport; locate the server first if this is the first call after `close`.

        Raises `NoServer` if no server is configured or running.
        """
        if self.transport is None or not self._is_located:
            address = self._destination.locate()  # a `trainwire up` that was restarted can have another port
            if self.transport is None or address != self.address:
                self.address = address
                with importing():
                    quiet_libraries()
                    self.transport = open_transport(address, self._destination.token, self._origin)
                    quiet_libraries()  # it has imported more
            self._is_located = True
        return self.transport

    def close(self) -> None:
        """Close the transport; the next call of `open` locates the server again."""
        self._is_located = False
        if self.transport is not None:
            self.transport.close()


def open_transport(url: str, token: str | None, origin: Origin) -> Transport:
    """Return the transport for `url`, which connects at its first use.

    The first call may take 100 ms, because of imports.
    """
    if is_gateway(url):
        from trainwire.ingest.sending.transports.gateway_connection import GatewayConnection  # noqa: PLC0415

        return GatewayConnection(url, token, origin.job_id, origin.source, origin.traceparent)
    from trainwire.ingest.sending.transports.redis_connection import RedisConnection  # noqa: PLC0415

    return RedisConnection(url, origin.job_id, origin.source)
