"""The settings of the gateway, from the environment."""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from trainwire.gateway.http.proxies import Network, is_loopback
from trainwire.stores.settings import StoreSettings, read_settings


class GatewaySettings(StoreSettings):
    """Settings from environment variables with the same names in capitals."""

    gateway_host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """The address to listen on."""
    gateway_port: Annotated[int, Field(ge=0, le=65_535)] = 8800
    """The port to listen on; 0 is any free one."""
    gateway_root_path: Annotated[str, Field(pattern=r"^(/[^/?#\s]+)*$")] = ""
    """The path below which a proxy serves the gateway, where it does not remove it from requests: `/trainwire`."""
    gateway_auth: Literal["auto", "on"] = "auto"
    """auto: whoever can reach the gateway may use it, as long as it listens on a loopback address only."""
    gateway_requests_per_s: Annotated[float, Field(gt=0)] = 100.0
    """Requests a second of one client address, on average; a few seconds' worth may come at once."""
    gateway_trusted_proxies: str = ""
    """Addresses and networks of proxies, comma-separated, whose X-Forwarded-For and X-Forwarded-Proto are used."""
    gateway_max_body_bytes: Annotated[int, Field(ge=1024, le=32 * 1024 * 1024)] = 8 * 1024 * 1024
    """Largest body of a request."""
    gateway_s3_url: str | None = None
    """The object store's address as browsers reach it, where that is not the gateway's own."""
    gateway_mlflow_url: str | None = None
    """MLflow's address as browsers reach it, where that is not MLFLOW_TRACKING_URI."""
    gateway_flower_url: str | None = None
    """Flower's address as browsers reach it; the page links to it."""
    gateway_db_connections: Annotated[int, Field(ge=2, le=200)] = 16
    """Most connections to Postgres."""

    @field_validator("gateway_trusted_proxies")
    @classmethod
    def _are_proxies(cls, value: str) -> str:
        for network in _networks(value):
            if not network.prefixlen:
                raise ValueError(f"trusts every client ({network}): name the addresses of the proxies alone")
        return value

    @field_validator("gateway_s3_url", "gateway_mlflow_url", "gateway_flower_url")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        if value and not re.match(r"https?://[^/]", value):
            raise ValueError("is no address like https://host:port")
        return value or None

    @property
    def trusted_proxies(self) -> tuple[Network, ...]:
        """The networks of `gateway_trusted_proxies`."""
        return _networks(self.gateway_trusted_proxies)

    @property
    def mlflow_shown_at(self) -> str | None:
        """The address that links to MLflow begin with; None where there is no MLflow."""
        return self.mlflow_tracking_uri and (self.gateway_mlflow_url or self.mlflow_tracking_uri)

    @property
    def is_auth_on(self) -> bool:
        """Tell whether a token is asked for: always, but for a gateway that only this machine can reach."""
        return self.gateway_auth == "on" or not is_loopback(self.gateway_host)


def _networks(value: str) -> tuple[Network, ...]:
    """Parse comma-separated addresses and networks; raise `ValueError` that names the wrong one."""
    networks = []
    for text in filter(None, map(str.strip, value.split(","))):
        try:
            networks.append(ip_network(text))
        except ValueError as exc:
            remedy = "use an address like 127.0.0.1 or a network like 10.0.0.0/8"
            raise ValueError(f"has {text!r}, which is no address or network of a proxy ({exc}): {remedy}") from exc
    return tuple(networks)


def load_gateway_settings(**overrides: Any) -> GatewaySettings:
    """Read the settings from the environment; raise `WrongSettings` that names each wrong variable."""
    return read_settings(GatewaySettings, **overrides)
