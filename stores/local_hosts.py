"""Recognizes loopback addresses and the host names of this machine."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def is_loopback(address: str) -> bool:
    """Return whether this is a loopback address or `localhost`."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def is_local_host(host: str) -> bool:
    """Return whether a Host header names a loopback address or `localhost`.

    Another name that resolves to this machine (DNS rebinding) is refused: to a browser the answer would belong to
    that site, and its scripts could read it.
    """
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False
