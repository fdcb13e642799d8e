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
    """Settings of the gateway; `gateway_port` is read from the environment variable `GATEWAY_PORT`, and so on."""

    gateway_host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """The address to listen on."""
    gateway_port: Annotated[int, Field(ge=0, le=65_535)] = 8800
    """The port to listen on; with 0 the operating system chooses a free one."""
    gateway_root_path: Annotated[str, Field(pattern=r"^(/[^/?#\s]+)*$")] = ""
    """The path prefix of a proxy that does not remove it from requests, for example `/trainwire`."""
    gateway_auth: Literal["auto", "on"] = "auto"
    """`auto`: no tokens are required on a loopback address; `on`: tokens are always required."""
    gateway_requests_per_s: Annotated[float, Field(gt=0)] = 100.0
    """Average requests per second allowed per client address; bursts of a few seconds' worth are allowed."""
    gateway_trusted_proxies: str = ""
    """Comma-separated addresses and networks of proxies whose X-Forwarded headers are trusted."""
    gateway_max_body_bytes: Annotated[int, Field(ge=1024, le=32 * 1024 * 1024)] = 8 * 1024 * 1024
    """Maximum size of a request body, in bytes."""
    gateway_s3_url: str | None = None
    """The object store's address for browsers, if it differs from the gateway's own (AWS_ENDPOINT_URL)."""
    gateway_mlflow_url: str | None = None
    """MLflow's address for browsers, if it differs from MLFLOW_TRACKING_URI."""
    gateway_flower_url: str | None = None
    """Flower's address for browsers; the web page links to it."""
    gateway_db_connections: Annotated[int, Field(ge=2, le=200)] = 16
    """Maximum number of Postgres connections, besides those for the live feed, tokens and readiness."""

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
        """The addresses and networks in `gateway_trusted_proxies`, parsed."""
        return _networks(self.gateway_trusted_proxies)

    @property
    def mlflow_shown_at(self) -> str | None:
        """The base URL of links to MLflow for browsers; None if MLflow is not configured."""
        return self.mlflow_tracking_uri and (self.gateway_mlflow_url or self.mlflow_tracking_uri)

    @property
    def is_auth_on(self) -> bool:
        """Whether requests need a token: `gateway_auth` is on, or other machines can reach the gateway."""
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
    """Read the settings from the environment; `overrides` (field -> value) take precedence.

    Raises `WrongSettings`, which names each variable that is missing or invalid.
    """
    return read_settings(GatewaySettings, **overrides)
