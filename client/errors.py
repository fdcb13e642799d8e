"""The errors of the client; each names the value and the remedy."""

from __future__ import annotations


class ClientError(Exception):
    """A request of the client failed; the message gives the reason and the remedy."""


class JobNotFound(ClientError, LookupError):  # noqa: N818 - as Python names its LookupErrors
    """No job has this number or name, or several do: the message lists them."""
