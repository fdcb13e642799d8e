"""Who may come in: tokens from a header, a cookie or a WebSocket's subprotocol, and what their roles allow."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from sqlalchemy import Engine
from starlette.requests import HTTPConnection

from trainwire.gateway.auth.token_cache import KnownTokens
from trainwire.gateway.auth.tokens import MAX_TOKEN_CHARS, Role

COOKIE: Final = "trainwire_session"
SUBPROTOCOL: Final = "trainwire.v1"
BEARER_SUBPROTOCOL: Final = "trainwire.bearer."
Need = Literal["viewer", "trainer", "admin"]
_ALLOWED: Final[dict[Need, frozenset[Role]]] = {
    "viewer": frozenset({"viewer", "admin"}),
    "trainer": frozenset({"trainer", "admin"}),
    "admin": frozenset({"admin"}),
}


class Unauthorized(Exception):  # noqa: N818 - said to people as it stands
    """There is no token, or none that is valid."""


class Forbidden(Exception):  # noqa: N818 - said to people as it stands
    """The token is valid, and not for this."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks; `job_id` is the only job that a trainer may speak for, None: any."""

    role: Role
    job_id: int | None = None
    token_id: int | None = None

    def check(self, need: Need, job_id: int | None = None) -> None:
        """Raise `Forbidden` unless the role, and for a trainer the job, allows what is asked."""
        if self.role not in _ALLOWED[need]:
            raise Forbidden(f"a token with the role {self.role} may not do this: it takes the role {need}")
        if self.job_id is not None and job_id != self.job_id:
            raise Forbidden(f"this token is for job {self.job_id} alone")


ANYBODY: Final = Identity("admin")
"""Who asks where no token is needed."""


class Guard:
    """Knows who has which token; one for each gateway."""

    def __init__(self, engine: Engine, *, is_on: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._tokens = KnownTokens(engine, clock)
        self.is_on = is_on

    async def identify(self, token: str, need: Need = "viewer") -> Identity | None:
        """Return who has this token, None where it is not valid."""
        if not self.is_on:
            return ANYBODY
        if len(token) > MAX_TOKEN_CHARS:
            return None
        known = await self._tokens.find(token, may_outlast_postgres=need == "trainer")
        return None if known is None else Identity(known.role, known.job_id, known.id)

    async def authorize(self, connection: HTTPConnection, need: Need, job_id: int | None = None) -> Identity:
        """Return who asks; raise `Unauthorized` or `Forbidden`."""
        if not self.is_on:
            return ANYBODY
        token = token_of(connection)
        if token is None:
            raise Unauthorized("this gateway asks for a token: `trainwire token create` makes one")
        identity = await self.identify(token, need)
        if identity is None:
            raise Unauthorized("the token is not valid: unknown, expired or revoked")
        identity.check(need, job_id)
        return identity


async def authorize_connection(connection: HTTPConnection, job_id: int | None = None) -> Identity:
    """Return who wants to follow this job, or with None all jobs; raise `Unauthorized` or `Forbidden`.

    The gateway's guard is `app.state.guard`. May also raise what SQLAlchemy raises while Postgres is away.
    """
    guard: Guard = connection.app.state.guard
    return await guard.authorize(connection, "viewer", job_id)


def require(need: Need) -> Callable[[HTTPConnection], Awaitable[Identity]]:
    """Return the dependency of a route that takes this role; a path's `job_id` is the job that is meant."""

    async def authorized(connection: HTTPConnection) -> Identity:
        guard: Guard = connection.app.state.guard
        said = str(connection.path_params.get("job_id", ""))
        # What is no number is refused by the route itself.
        return await guard.authorize(connection, need, int(said) if _is_number(said) else None)

    return authorized


def token_of(connection: HTTPConnection) -> str | None:
    """Return the token that came with a request: never from its URL, which gets logged."""
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    offered: Sequence[str] = connection.scope.get("subprotocols", ())
    for name in offered:
        if name.startswith(BEARER_SUBPROTOCOL):
            return name.removeprefix(BEARER_SUBPROTOCOL)
    return connection.cookies.get(COOKIE) or None


def _is_number(said: str) -> bool:
    return said.isascii() and said.isdecimal() and len(said) < 20
