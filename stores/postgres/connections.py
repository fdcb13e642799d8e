"""Connections to Postgres and Redis with time-outs, and the classification of Postgres' errors."""

from __future__ import annotations

from typing import Final

import psycopg
import redis
import sqlalchemy
from redis.backoff import ExponentialBackoff
from redis.retry import Retry
from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext

from trainwire.schemas.streams.clients import open_streams
from trainwire.stores.settings import StoreSettings

CONNECT_TIMEOUT_S: Final = 5
SOCKET_TIMEOUT_S: Final = 20
POOL_TIMEOUT_S: Final = 10
KEPT_CONNECTIONS: Final = 5
"""Connections that a pool keeps open: as many as a delivery uses at once."""


PREPARE_THRESHOLD: Final = 5
"""Uses after which psycopg prepares a statement: its default, explicit here because None disables it."""
_REMEDIES: Final = {
    "certificate verify failed": "name the file of its CA in DATABASE_URL, ?sslmode=verify-full&sslrootcert="
    "/path/to/ca.pem",
    "root certificate file": "correct sslrootcert in DATABASE_URL",
    "read-only transaction": "the server is read-only, a standby or with default_transaction_read_only = on: "
    "point DATABASE_URL to the primary, or name both servers and target_session_attrs=read-write",
    "unsupported startup parameter": "PgBouncer refuses it: set ignore_startup_parameters = "
    "options in its file (docs/scaling.md)",
}
"""Remedies by a part of libpq's message, which does not name the setting to change."""
_UNAVAILABLE_CLASSES: Final = ("08", "40", "53", "55", "57", "58")
"""SQLSTATE classes: connection, rollback (deadlock, serialization), resources (disk, memory), lock, operator
intervention (shutdown, statement timeout), system error (input and output)."""
_UNAVAILABLE_STATES: Final = frozenset({"25006", "25P03", "25P04"})
"""A read-only server; idle_in_transaction_session_timeout and transaction_timeout, which end the session."""
_SESSION_ENDS: Final = ("08", "25006", "25P03", "25P04", "57P01", "57P02", "57P03", "57P04", "57P05")
"""SQLSTATEs after which the session has ended, or its server refuses writes."""
_LOST_STATES: Final = frozenset({"42P05", "26000"})
"""Postgres' duplicate_prepared_statement and invalid_sql_statement_name."""
_LOST_REMEDY: Final = (
    "a pooler gives each transaction another connection: set DATABASE_PREPARED_STATEMENTS=false here, or "
    "pool_mode = session there (docs/scaling.md)"
)


def open_engine(
    settings: StoreSettings, *, name: str = "trainwire", most: int = 9, statement_timeout_s: int = 0
) -> Engine:
    """Return an engine with at most `most` connections; a statement timeout of 0 is none.

    Sessions are in UTC, and the server ends them within a second after their client has vanished.
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
            "options": f"-c timezone=UTC -c client_connection_check_interval=1000 {timeouts}",
        },
    )
    event.listen(engine, "handle_error", _drop_useless_sessions)
    return engine


def _drop_useless_sessions(context: ExceptionContext) -> None:
    """Make SQLAlchemy discard the connection, and all connections of the pool that are as old or older."""
    if ends_session(context.original_exception):
        context.is_disconnect = True


def ends_session(exc: BaseException) -> bool:
    """Return whether the session cannot be used any more after this error."""
    return _sqlstate(exc).startswith(_SESSION_ENDS) and not has_lost_statements(exc)


def is_unavailable(exc: BaseException) -> bool:
    """Return whether this error of Postgres or its client is temporary: retry later."""
    cause, state = getattr(exc, "orig", None) or exc, _sqlstate(exc)
    if not state:
        return isinstance(cause, (psycopg.OperationalError, psycopg.InterfaceError))
    return state in _UNAVAILABLE_STATES or state.startswith(_UNAVAILABLE_CLASSES)


def _sqlstate(exc: BaseException) -> str:
    return getattr(getattr(exc, "orig", None) or exc, "sqlstate", None) or ""


def postgres_trouble(exc: BaseException) -> str:
    """Return the error of Postgres or its client in one line, with the remedy if TLS or a pooler is the cause."""
    lines = [line.strip() for line in str(getattr(exc, "orig", None) or exc).splitlines() if line.strip()]
    causes = [line for line in lines if "failed:" in line or "FATAL" in line]
    message = (causes or lines or ["no answer"])[0]
    remedies = [remedy for part, remedy in _REMEDIES.items() if part in message]
    if has_lost_statements(exc):
        remedies = [_LOST_REMEDY]
    return f"{message}: {remedies[0]}" if remedies else message


def has_lost_statements(exc: BaseException) -> bool:
    """Return whether the session lacks a prepared statement: a pooler in transaction mode is in between."""
    state = _sqlstate(exc)
    # 08P01: another client has prepared one of this name, with other parameters.
    return state in _LOST_STATES or (state == "08P01" and "prepared statement" in str(exc))


def open_redis(settings: StoreSettings) -> redis.Redis:
    """Return a client with time-outs: one short retry, then the error of redis-py."""
    return _open(settings.redis_url.get_secret_value())


def open_stream_client(settings: StoreSettings) -> redis.Redis | None:
    """Return a client of the server that has the streams; None if that is the server of `open_redis`."""
    url = settings.streams_url
    return None if url is None else _open(url.get_secret_value())


def _open(url: str) -> redis.Redis:
    return open_streams(
        url,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_keepalive=True,
        health_check_interval=15,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), retries=1),
    )
