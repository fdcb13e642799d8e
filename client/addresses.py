"""Finds the server from which a client reads: a gateway or a Postgres."""

from __future__ import annotations

import os
from typing import NamedTuple

from trainwire.client.errors import ClientError
from trainwire.ingest.settings.running_stacks import NoStack, StackFolders
from trainwire.ingest.settings.server_addresses import checked_url, token_of
from trainwire.ingest.settings.variables import TOKEN_VARIABLE, URL_VARIABLE

URL_VARIABLES = (URL_VARIABLE, "GATEWAY_URL")
DATABASE_VARIABLE = "DATABASE_URL"


class Address(NamedTuple):
    """The server that a client reads from: the URL of a gateway with its token, or the URL of a Postgres."""

    url: str | None = None
    token: str | None = None
    database_url: str | None = None


def find_address(url: str | None, token: str | None, database_url: str | None) -> Address:
    """Return the server in the arguments, else the one in the environment, else that of a running `trainwire up`.

    Raises `ClientError` if none of them names a server, if both `url` and `database_url` are given, or if the URL
    or the token is invalid.
    """
    if url is not None and database_url is not None:
        raise ClientError("both url and database_url are given: a client reads from one of them")
    if database_url is not None:
        return Address(database_url=database_url)
    try:
        token = token_of({TOKEN_VARIABLE: token} if token else os.environ)
        if url:
            return Address(checked_url(url, "url"), token)
        for name in URL_VARIABLES:
            if named := os.environ.get(name):
                return Address(checked_url(named, name), token)
    except ValueError as exc:
        raise ClientError(str(exc)) from exc
    if database_url := os.environ.get(DATABASE_VARIABLE):
        return Address(database_url=database_url)
    try:
        stack = StackFolders.from_env(os.environ).find()
    except NoStack as exc:
        raise ClientError(
            f"{exc}: start `{exc.command}`, or set TRAINWIRE_URL (and TRAINWIRE_TOKEN) to a gateway, or "
            "DATABASE_URL to its Postgres"
        ) from exc
    gateway = stack.text("gateway_url")
    return Address(gateway, token) if gateway else Address(database_url=stack.text("database_url"))
