"""Authenticates requests by token (header, cookie or WebSocket subprotocol), and checks roles."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import HTTPConnection

from trainwire.gateway.auth.token_cache import TokenCache
from trainwire.gateway.auth.tokens import MAX_TOKEN_CHARS, Role

COOKIE: Final = "trainwire_session"
SUBPROTOCOL: Final = "trainwire.v1"
BEARER_SUBPROTOCOL: Final = "trainwire.bearer."
CHECK_EVERY_S: Final = 60.0
_ALLOWED: Final[dict[Role, frozenset[Role]]] = {
    "viewer": frozenset({"viewer", "admin"}),
    "trainer": frozenset({"trainer", "admin"}),
    "admin": frozenset({"admin"}),
}


class Unauthorized(Exception):  # noqa: N818 - its text is sent to clients
    """The request has no token, or its token is not valid."""


class Forbidden(Exception):  # noqa: N818 - its text is sent to clients
    """The token is valid, but its role, its job or its job names do not allow the request."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The role of an authenticated request, and the jobs to which its token is limited.

    A token with a `job_id` is valid for requests about that job only, one with `job_names` only for messages of
    jobs with such names.
    """

    role: Role
    job_id: int | None = None
    token_id: int | None = None
    job_names: str | None = None
    """An exact job name, or a prefix of names followed by `*`; None for no limit."""

    def check(self, needed: Role, job_id: int | None = None, *, checks_names: bool = False) -> None:
        """Raise `Forbidden` unless the token allows a request that needs the role `needed`, on job `job_id`.

        A token that is limited to job names is refused, unless `checks_names` is true: the caller then compares
        the job's name with `job_names`.
        """
        if self.role not in _ALLOWED[needed]:
            raise Forbidden(f"the token has the role {self.role}: use a token with the role {needed}")
        if self.job_id is not None and job_id != self.job_id:
            raise Forbidden(f"the token is for job {self.job_id} only: use a token for this job")
        if self.job_names is not None and not checks_names:
            raise Forbidden(f"the token is for messages of runs named {self.job_names} only: use another token")


UNAUTHENTICATED: Final = Identity("admin")
"""The identity of every request to a gateway that requires no tokens."""


class Authorizer:
    """Authenticates the requests to one gateway by their tokens, and checks roles."""

    def __init__(self, engine: Engine, *, is_on: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._tokens = TokenCache(engine, clock)
        self.is_on = is_on
        """Whether tokens are required."""

    async def identify(self, token: str, needed: Role = "viewer") -> Identity | None:
        """Return the identity of `token`; None if the token is not valid.

        If no tokens are required, it is UNAUTHENTICATED. If `needed` is `trainer`, a token that was valid at most
        `OUTAGE_S` seconds ago is accepted while Postgres is unavailable. Otherwise SQLAlchemy's errors are raised.
        """
        if not self.is_on:
            return UNAUTHENTICATED
        if len(token) > MAX_TOKEN_CHARS:
            return None
        valid = await self._tokens.find(token, may_outlast_postgres=needed == "trainer")
        return None if valid is None else Identity(valid.role, valid.job_id, valid.id, valid.job_names)

    async def authorize(
        self,
        connection: HTTPConnection,
        needed: Role,
        job_id: int | None = None,
        *,
        checks_names: bool = False,
    ) -> Identity:
        """Return the identity of a request that needs the role `needed`, on job `job_id` if it is about one job.

        If no tokens are required, it is UNAUTHENTICATED. `checks_names` has the meaning that it has in
        `Identity.check`. Raises `Unauthorized` without a valid token, `Forbidden` if the token does not allow the
        request, and SQLAlchemy's errors.
        """
        if not self.is_on:
            return UNAUTHENTICATED
        token = token_of(connection)
        if token is None:
            raise Unauthorized("this gateway requires a token: `trainwire token create` makes one")
        identity = await self.identify(token, needed)
        if identity is None:
            raise invalid_token()
        identity.check(needed, job_id, checks_names=checks_names)
        return identity


def invalid_token() -> Unauthorized:
    """Return the error for a token that is unknown, expired or revoked."""
    return Unauthorized("the token is unknown, expired or revoked: `trainwire token create` makes a new one")


async def authorize_connection(connection: HTTPConnection, job_id: int | None = None) -> Identity:
    """Authorize a request for the live feed of job `job_id`, or of all jobs if it is None; return its identity.

    Uses the `Authorizer` in `app.state.authorizer`, and raises the exceptions of its method `authorize`.
    """
    authorizer: Authorizer = connection.app.state.authorizer
    return await authorizer.authorize(connection, "viewer", job_id)


async def wait_until_refused(
    connection: HTTPConnection, job_id: int | None, every_s: float = CHECK_EVERY_S
) -> None:
    """Repeat the authorization of an open connection every `every_s` seconds, until it fails.

    Raises `Unauthorized` or `Forbidden`, for example after the token was revoked. While Postgres is unavailable,
    the connection stays open.
    """
    while True:
        await asyncio.sleep(every_s)
        with suppress(SQLAlchemyError):
            await authorize_connection(connection, job_id)


def require(needed: Role, *, checks_names: bool = False) -> Callable[[HTTPConnection], Awaitable[Identity]]:
    """Return a FastAPI dependency that authorizes a request with the role `needed`, and returns its identity.

    A token that is limited to a job is accepted only if the path has this job as its `job_id`. A token that is
    limited to job names is refused, unless `checks_names` is True: the route must then compare the names itself.
    """

    async def authorized(connection: HTTPConnection) -> Identity:
        authorizer: Authorizer = connection.app.state.authorizer
        # The route itself refuses a job_id that is not a number.
        job_id = parse_number(str(connection.path_params.get("job_id", "")))
        return await authorizer.authorize(connection, needed, job_id, checks_names=checks_names)

    return authorized


def parse_number(text: str) -> int | None:
    """Parse a number of at most 19 ASCII digits; return None for any other text."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None


def token_of(connection: HTTPConnection) -> str | None:
    """Return the token in the Authorization header, the WebSocket subprotocols or the cookie; None without one.

    A token in the URL is ignored, because URLs are logged.
    """
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    offered: Sequence[str] = connection.scope.get("subprotocols", ())
    for name in offered:
        if name.startswith(BEARER_SUBPROTOCOL):
            return name.removeprefix(BEARER_SUBPROTOCOL)
    return connection.cookies.get(COOKIE) or None
