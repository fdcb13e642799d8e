"""The errors of the client; each message names the rejected value and the remedy."""

from __future__ import annotations


class ClientError(Exception):
    """A request of the client failed; the message gives the reason and the remedy."""


class GatewayUnavailable(ClientError):  # noqa: N818 - a state
    """No gateway answers at this address now; a retry may succeed."""


class JobNotFound(ClientError, LookupError):  # noqa: N818 - as Python names its LookupErrors
    """No job has this number or name, or several jobs match it; the message then lists them."""
