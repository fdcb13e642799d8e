"""Access tokens: random text with a role, stored as a hash."""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime, timedelta
from typing import Final, Literal, get_args

import msgspec
from sqlalchemy import Connection, func, insert, select, text, update

from trainwire.schemas.tables import gateway_tokens
from trainwire.stores.postgres.columns import columns_of

Role = Literal["viewer", "trainer", "admin"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
PREFIX: Final = "tw_"
RANDOM_BYTES: Final = 32
MAX_TOKEN_CHARS: Final = 200


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A row of gateway_tokens without the hash; `job_id` or `job_names` limits a trainer's token to some jobs."""

    id: int
    name: str
    role: Role
    job_id: int | None
    job_names: str | None
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None


class ValidToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token that is neither expired nor revoked: its role, and the jobs to which it is limited.

    `expires_in_s` is None for a token that never expires. `must_note_use` is true if its `last_used_at` is null or
    more than a minute old.
    """

    id: int
    role: Role
    job_id: int | None
    job_names: str | None = None
    expires_in_s: float | None = None
    must_note_use: bool = True


def create_token(
    connection: Connection,
    name: str,
    role: Role,
    job_id: int | None = None,
    lasts: timedelta | None = None,
    *,
    job_names: str | None = None,
) -> tuple[int, str]:
    """Create a token; return its id and its text, which is not stored: the database has only its hash.

    The token expires after `lasts`, or never if that is None. `job_id` or `job_names` limits it to some jobs.
    """
    token = PREFIX + secrets.token_urlsafe(RANDOM_BYTES)
    values = {"name": name, "role": role, "job_id": job_id, "job_names": job_names, "hash": hash_of(token)}
    until = None if lasts is None else func.now() + lasts
    made = insert(gateway_tokens).values(**values, expires_at=until).returning(gateway_tokens.c.id)
    return int(connection.execute(made).scalar_one()), token


def list_tokens(connection: Connection) -> list[Token]:
    """Return all tokens, the oldest first, including expired and revoked ones."""
    found = select(*columns_of(Token, gateway_tokens)).order_by(gateway_tokens.c.id)
    return [Token(**row) for row in connection.execute(found).mappings()]


def revoke_token(connection: Connection, token_id: int) -> bool:
    """Revoke a token by its id; return whether a token with this id exists."""
    table = gateway_tokens
    revoked = update(table).where(table.c.id == token_id).returning(table.c.id)
    at = func.coalesce(table.c.revoked_at, func.now())
    return connection.execute(revoked.values(revoked_at=at)).scalar_one_or_none() is not None


def find_token(connection: Connection, token: str) -> ValidToken | None:
    """Look up a token by its text; return None if it is unknown, expired or revoked."""
    row = connection.execute(_FIND, {"hash": hash_of(token)}).mappings().one_or_none()
    return None if row is None else ValidToken(**row)


def note_use(connection: Connection, token_id: int) -> None:
    """Set `last_used_at` of a token to the current time."""
    connection.execute(_USED, {"id": token_id})


def is_named_by(pattern: str, name: str) -> bool:
    """Return whether `name` matches `pattern`: an exact name, or a prefix followed by `*`."""
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def hash_of(token: str) -> bytes:
    """Return the SHA-256 of a token; 256 random bits do not need a slow password hash."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


_FIND: Final = text(
    "SELECT id, role, job_id, job_names, "
    "coalesce(last_used_at < now() - interval '1 minute', true) AS must_note_use, "
    "CAST(extract(epoch FROM expires_at - now()) AS double precision) AS expires_in_s "
    "FROM gateway_tokens WHERE hash = :hash AND revoked_at IS NULL "
    "AND coalesce(expires_at > now(), true)"
)
_USED: Final = text("UPDATE gateway_tokens SET last_used_at = now() WHERE id = :id")
