"""The settings of the gateway, from the environment."""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from trainwire.gateway.http.proxies import Network
from trainwire.stores.local_hosts import is_loopback
from trainwire.stores.settings import StoreSettings, read_settings


class GatewaySettings(StoreSettings):
    """Settings from environment variables with the same names in capitals."""

    gateway_host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """The address to listen on."""
    gateway_port: Annotated[int, Field(ge=0, le=65_535)] = 8800
    """The port to listen on; 0 is any free one."""
    gateway_root_path: Annotated[str, Field(pattern=r"^(/[^/?#\s]+)*$")] = ""
    """The path prefix of a proxy that does not remove it from requests, for example `/trainwire`."""
    gateway_auth: Literal["auto", "on"] = "auto"
    """auto: no tokens are required on a loopback address; on: tokens are always required."""
    gateway_requests_per_s: Annotated[float, Field(gt=0)] = 100.0
    """Average requests a second of one client address; bursts of a few seconds' worth are allowed."""
    gateway_trusted_proxies: str = ""
    """Comma-separated addresses and networks of proxies whose X-Forwarded headers are trusted."""
    gateway_max_body_bytes: Annotated[int, Field(ge=1024, le=32 * 1024 * 1024)] = 8 * 1024 * 1024
    """Largest body of a request."""
    gateway_s3_url: str | None = None
    """The object store's address for browsers, if the gateway's own address is another one."""
    gateway_mlflow_url: str | None = None
    """MLflow's address for browsers, if MLFLOW_TRACKING_URI is another one."""
    gateway_flower_url: str | None = None
    """Flower's address for browsers; the page links to it."""
    gateway_db_connections: Annotated[int, Field(ge=2, le=200)] = 16
    """Maximum connections to Postgres, without those of the feed and of tokens."""

    @field_validator("gateway_trusted_proxies")
    @classmethod
    def _are_proxies(cls, value: str) -> str:
        for network in _networks(value):
            if not network.prefixlen:
                raise ValueError(f"trusts every client ({network}): use the addresses of the proxies only")
        return value

    @field_validator("gateway_s3_url", "gateway_mlflow_url", "gateway_flower_url")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        if value and not re.match(r"https?://[^/]", value):
            raise ValueError("is not an address like https://host:port")
        return value or None

    @property
    def trusted_proxies(self) -> tuple[Network, ...]:
        """The parsed `gateway_trusted_proxies`."""
        return _networks(self.gateway_trusted_proxies)

    @property
    def mlflow_shown_at(self) -> str | None:
        """The base of links to MLflow; None without MLflow."""
        return self.mlflow_tracking_uri and (self.gateway_mlflow_url or self.mlflow_tracking_uri)

    @property
    def is_auth_on(self) -> bool:
        """Return whether tokens are required: always on an address that other machines can reach."""
        return self.gateway_auth == "on" or not is_loopback(self.gateway_host)


def _networks(value: str) -> tuple[Network, ...]:
    """Parse comma-separated addresses and networks; raise a `ValueError` that names an invalid one."""
    networks = []
    for text in filter(None, map(str.strip, value.split(","))):
        try:
            networks.append(ip_network(text))
        except ValueError as exc:
            remedy = "use an address like 127.0.0.1 or a network like 10.0.0.0/8"
            raise ValueError(f"has {text!r}, which is not an address or network ({exc}): {remedy}") from exc
    return tuple(networks)


def load_gateway_settings(**overrides: Any) -> GatewaySettings:
    """Read the settings from the environment; raise `WrongSettings` with each invalid variable."""
    return read_settings(GatewaySettings, **overrides)
