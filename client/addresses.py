"""Finds the server that a client reads from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from trainwire.client.errors import ClientError
from trainwire.ingest.running_stacks import NoStack, StackFolders

URL_VARIABLES = ("TRAINWIRE_URL", "GATEWAY_URL")
TOKEN_VARIABLE = "TRAINWIRE_TOKEN"  # noqa: S105 - a name
DATABASE_VARIABLE = "DATABASE_URL"


class Address(NamedTuple):
    """The address of a gateway with a token, or that of a Postgres."""

    url: str | None = None
    token: str | None = None
    database_url: str | None = None


def find_address(
    url: str | None, token: str | None, database_url: str | None, environ: Mapping[str, str] = os.environ
) -> Address:
    """Return the server that is given, else that of the environment, else the running `trainwire up`.

    Raises `ClientError` where there is none, or where two are given.
    """
    if url is not None and database_url is not None:
        raise ClientError("both url and database_url are given: a client reads from one of them")
    token = token or environ.get(TOKEN_VARIABLE) or None
    if database_url is not None:
        return Address(database_url=database_url)
    named = next((value for name in URL_VARIABLES if (value := environ.get(name))), None)
    if url or named:
        return Address(_checked(url or named or ""), token)
    if database_url := environ.get(DATABASE_VARIABLE):
        return Address(database_url=database_url)
    try:
        stack = StackFolders.from_env(environ).find()
    except NoStack as exc:
        raise ClientError(
            f"{exc}: start `{exc.command}`, or set TRAINWIRE_URL (and TRAINWIRE_TOKEN) to a gateway, or "
            "DATABASE_URL to its Postgres"
        ) from exc
    gateway = stack.text("gateway_url")
    return Address(gateway, token) if gateway else Address(database_url=stack.text("database_url"))


def _checked(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ClientError(f"url={url!r} is not the address of a gateway: write http://host:8800 or https://host")
    return url.rstrip("/")
