"""Addresses and host names that lead to this machine alone."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def is_loopback(address: str) -> bool:
    """Tell whether an address, or `localhost`, leads to this machine alone."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def is_local_host(host: str) -> bool:
    """Tell whether a Host header names this machine itself.

    A foreign name that is made to lead here (DNS rebinding) does not: a browser would take what answers for a part
    of that site, whose scripts could read it.
    """
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False
