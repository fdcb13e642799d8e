"""Connections to Postgres and Redis with timeouts, and the classification of Postgres errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import psycopg
import sqlalchemy
from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext

from trainwire.stores.settings import StoreSettings

if TYPE_CHECKING:
    import redis

CONNECT_TIMEOUT_S: Final = 5
SOCKET_TIMEOUT_S: Final = 20
POOL_TIMEOUT_S: Final = 10
KEPT_CONNECTIONS: Final = 5
"""Number of connections that a pool keeps open: the number that a delivery uses at once."""


PREPARE_THRESHOLD: Final = 5
"""Number of executions after which psycopg prepares a statement.

It is psycopg's default, which is explicit here because None disables prepared statements.
"""
_REMEDIES: Final = {
    "password authentication failed": "correct user and password in DATABASE_URL",
    "certificate verify failed": "name the file of its CA in DATABASE_URL, ?sslmode=verify-full&sslrootcert="
    "/path/to/ca.pem",
    "root certificate file": "correct sslrootcert in DATABASE_URL",
    "read-only transaction": "the server is read-only, a standby or with default_transaction_read_only = on: "
    "point DATABASE_URL to the primary, or name both servers and target_session_attrs=read-write",
    "unsupported startup parameter": "PgBouncer refuses it: set ignore_startup_parameters = "
    "options in its file (docs/scaling.md)",
}
"""Part of a libpq error message -> remedy; libpq does not name the setting to change."""
_UNAVAILABLE_CLASSES: Final = ("08", "40", "53", "55", "57", "58")
"""SQLSTATE classes of temporary errors.

They are: connection, rollback (deadlock, serialization), resources (disk, memory), lock, operator intervention
(shutdown, statement timeout), and system error (input and output).
"""
_UNAVAILABLE_STATES: Final = frozenset({"25006", "25P03", "25P04"})
"""SQLSTATEs of further temporary errors: a read-only server, and timeouts that end the session.

The timeouts are idle_in_transaction_session_timeout and transaction_timeout.
"""
LOCK_NOT_AVAILABLE: Final = "55P03"
"""SQLSTATE of a statement that has waited for a lock until its timeout, or was not to wait."""
_SESSION_ENDS: Final = ("08", "25006", "25P03", "25P04", "57P01", "57P02", "57P03", "57P04", "57P05")
"""Prefixes of SQLSTATEs after which the session has ended, or is useless because its server refuses writes."""
_LOST_STATES: Final = frozenset({"42P05", "26000"})
"""SQLSTATEs of a prepared statement that exists already, or does not exist.

They are duplicate_prepared_statement and invalid_sql_statement_name.
"""
_LOST_REMEDY: Final = (
    "a pooler gives each transaction another connection: set DATABASE_PREPARED_STATEMENTS=false here, or "
    "pool_mode = session there (docs/scaling.md)"
)


def open_engine(
    settings: StoreSettings, *, name: str = "trainwire", most: int = 9, statement_timeout_s: int = 0
) -> Engine:
    """Return an engine with at most `most` connections; `name` is their `application_name` in Postgres.

    `statement_timeout_s=0` means no statement timeout; a statement waits at most 30 s for a lock. Sessions use
    UTC, and no JIT. The server ends a running query within a second after its client has disappeared.
    """
    timeouts = f"-c statement_timeout={statement_timeout_s}s -c lock_timeout=30s"
    engine = sqlalchemy.create_engine(
        settings.sqlalchemy_url(),
        pool_size=min(KEPT_CONNECTIONS, most),
        max_overflow=max(0, most - KEPT_CONNECTIONS),
        pool_timeout=POOL_TIMEOUT_S,
        pool_pre_ping=True,
        connect_args={
            "prepare_threshold": PREPARE_THRESHOLD if settings.database_prepared_statements else None,
            "application_name": name,
            "connect_timeout": CONNECT_TIMEOUT_S,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
            # Postgres estimates the costs of a sort by a metric far above its limits for JIT, whose compilation
            # takes longer than the query.
            "options": f"-c timezone=UTC -c jit=off -c client_connection_check_interval=1000 {timeouts}",
        },
    )
    event.listen(engine, "handle_error", _drop_useless_sessions)
    return engine


def _drop_useless_sessions(context: ExceptionContext) -> None:
    """SQLAlchemy event handler: discard the connection after an error that ended its session.

    Older connections of the pool are discarded too. An error of the pool's ping always counts: if a time limit
    ends a ping of a frozen server, the driver reports a wrong state of the connection.
    """
    if context.is_pre_ping or ends_session(context.original_exception):
        context.is_disconnect = True


def ends_session(exc: BaseException) -> bool:
    """Return whether a Postgres session can no longer be used after the error `exc`."""
    return _sqlstate(exc).startswith(_SESSION_ENDS) and not has_lost_statements(exc)


def is_unavailable(exc: BaseException) -> bool:
    """Return whether this error of Postgres or psycopg is temporary, so that a retry may succeed."""
    cause, state = getattr(exc, "orig", None) or exc, _sqlstate(exc)
    if not state:
        return isinstance(cause, (psycopg.OperationalError, psycopg.InterfaceError))
    return state in _UNAVAILABLE_STATES or state.startswith(_UNAVAILABLE_CLASSES)


def _sqlstate(exc: BaseException) -> str:
    return getattr(getattr(exc, "orig", None) or exc, "sqlstate", None) or ""


def postgres_trouble(exc: BaseException) -> str:
    """Return an error of Postgres or psycopg as one line, with a remedy for causes such as TLS or a pooler."""
    lines = [line.strip() for line in str(getattr(exc, "orig", None) or exc).splitlines() if line.strip()]
    causes = [line for line in lines if "failed:" in line or "FATAL" in line]
    message = (causes or lines or ["no answer"])[0]
    remedies = [remedy for part, remedy in _REMEDIES.items() if part in message]
    if has_lost_statements(exc):
        remedies = [_LOST_REMEDY]
    return f"{message}: {remedies[0]}" if remedies else message


def has_lost_statements(exc: BaseException) -> bool:
    """Return whether the error is about a prepared statement that is missing, or that another client has prepared.

    A pooler in transaction mode causes such errors.
    """
    state = _sqlstate(exc)
    # 08P01: another client has prepared one of this name, with other parameters.
    return state in _LOST_STATES or (state == "08P01" and "prepared statement" in str(exc))


def open_redis(settings: StoreSettings) -> redis.Redis:
    """Return a Redis client with timeouts; it retries a failed command once, then raises redis-py's error."""
    return _open(settings.redis_url.get_secret_value())


def open_stream_client(settings: StoreSettings) -> redis.Redis | None:
    """Return a client of the Redis that stores the streams; None if they are in the Redis of `open_redis`."""
    url = settings.streams_url
    return None if url is None else _open(url.get_secret_value())


def _open(url: str) -> redis.Redis:
    # Not imported by the many commands that need only Postgres: it takes a fifth of a second.
    from redis.backoff import ExponentialBackoff  # noqa: PLC0415
    from redis.retry import Retry  # noqa: PLC0415

    from trainwire.schemas.streams.clients import open_streams  # noqa: PLC0415

    return open_streams(
        url,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_keepalive=True,
        health_check_interval=15,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), retries=1),
    )
