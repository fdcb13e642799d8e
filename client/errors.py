"""The errors of the client; each names the value and the remedy."""

from __future__ import annotations


class ClientError(Exception):
    """A request of the client failed; the message gives the reason and the remedy."""


class GatewayUnavailable(ClientError):  # noqa: N818 - a state
    """No gateway answers at the address; it may later."""


class JobNotFound(ClientError, LookupError):  # noqa: N818 - as Python names its LookupErrors
    """No job has this number or name, or several do: the message lists them."""
