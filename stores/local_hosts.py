"""Recognizes loopback addresses."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def is_loopback(address: str) -> bool:
    """Return whether `address` is a loopback IP address or `localhost`."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def is_local_host(host: str) -> bool:
    """Return whether a Host header names a loopback address or `localhost`.

    Other names that resolve to this machine are rejected as DNS rebinding: a browser would treat the response as
    content of that site, and its scripts could read it.
    """
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False
