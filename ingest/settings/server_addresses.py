"""Checks the addresses of servers, and the token, that a user gives in variables or arguments."""

from __future__ import annotations

from collections.abc import Mapping

from trainwire.ingest.settings.variables import (
    REDIS_URL_VARIABLE,
    STREAMS_URL_VARIABLE,
    TOKEN_VARIABLE,
    URL_VARIABLE,
)
from trainwire.schemas.gateway_urls import gateway_url_problem
from trainwire.schemas.streams.redis_urls import redis_url_problem, shown_url
from trainwire.schemas.streams.urls import cluster_nodes, is_cluster


def checked_redis_url(url: str, name: str = REDIS_URL_VARIABLE) -> str:
    """Return `url` if it is a valid Redis URL; raise `ValueError` otherwise.

    The error begins with `name`, the variable or argument that has the value, and shows the address without the
    part before an @.
    """
    _check_text(url, name)
    if (problem := redis_url_problem(url)) is not None:
        raise ValueError(f"{name}={shown_url(url)!r} {problem}")
    return url


def checked_url(url: str, name: str = URL_VARIABLE) -> str:
    """Return `url` if it is a valid gateway URL; raise `ValueError` otherwise, whose text begins with `name`."""
    _check_text(url, name)
    if (problem := gateway_url_problem(url)) is not None:
        raise ValueError(f"{name}={shown_url(url)!r} {problem}")
    return url


def _check_text(url: object, name: str) -> None:
    if not isinstance(url, str):
        raise ValueError(f"{name}={url!r} is not an address: give a string")  # noqa: TRY004 - as for other addresses


def token_of(environ: Mapping[str, str]) -> str | None:
    """Return TRAINWIRE_TOKEN without surrounding whitespace, None if it is not set.

    Raises `ValueError` for an invalid token; the error does not show it.
    """
    token = (environ.get(TOKEN_VARIABLE) or "").strip()
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ValueError(f"{TOKEN_VARIABLE} is no token: copy the line that `trainwire token create` has printed")
    return token or None


def streams_url_of(environ: Mapping[str, str]) -> str | None:
    """Return STREAMS_URL, None if it is not set. Raises `ValueError` for an invalid one."""
    url = environ.get(STREAMS_URL_VARIABLE) or None
    if url is None or not is_cluster(url):
        return None if url is None else checked_redis_url(url, STREAMS_URL_VARIABLE)
    try:
        cluster_nodes(url)
    except ValueError as exc:
        raise ValueError(
            f"{STREAMS_URL_VARIABLE}={shown_url(url)!r} {exc}: write redis+cluster://host:6379,host:6379"
        ) from exc
    return url
