"""The Postgres side of a drain: what it says, the lease and cursor of a stream, COPY, and the dead letters."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import psycopg
from sqlalchemy import Column, Connection, DateTime, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError

from trainwire.schemas.keys import Kind
from trainwire.schemas.kinds import RowStorage
from trainwire.schemas.tables import dead_letters, ingest_cursors
from trainwire.stores.postgres.connections import (
    ends_session,
    has_lost_statements,
    is_unavailable,
    postgres_trouble,
)
from trainwire.workers.drain import rows
from trainwire.workers.drain.decoding import Rejected, visible
from trainwire.workers.drain.recordset import sql_type
from trainwire.workers.durations import bucket_of
from trainwire.workers.errors import Refused, Unavailable, WrongPooler

_REFUSED_CLASSES: Final = ("22", "23", "54")
"""SQLSTATE classes: data exception, integrity constraint violation, program limit exceeded."""


@contextmanager
def postgres_errors() -> Iterator[None]:
    """Translate what Postgres says: `Refused`, `Unavailable`, or its own error where we are at fault."""
    try:
        yield
    except (psycopg.Error, DBAPIError) as exc:
        cause = exc.orig if isinstance(exc, DBAPIError) else exc
        state = getattr(cause, "sqlstate", None) or ""
        if state[:2] in _REFUSED_CLASSES:
            raise Refused(_first_line(cause)) from exc
        if has_lost_statements(exc):
            raise WrongPooler(f"Postgres: {postgres_trouble(exc)}") from exc
        if is_unavailable(exc):
            raise Unavailable(f"Postgres: {postgres_trouble(exc)}") from exc
        raise


def take_lease(connection: Connection, stream: str) -> bool:
    """Lock the stream's cursor for this transaction; False when another drain has it."""
    lease = text("SELECT 1 FROM ingest_cursors WHERE stream = :stream FOR UPDATE SKIP LOCKED")
    if connection.execute(lease, {"stream": stream}).first():
        return True
    known = text("SELECT 1 FROM ingest_cursors WHERE stream = :stream")
    if connection.execute(known, {"stream": stream}).first():
        return False
    # In a transaction of its own: as part of ours it would make the next drain wait instead of return.
    with connection.engine.begin() as at_once:
        at_once.execute(insert(ingest_cursors).values(stream=stream).on_conflict_do_nothing())
    return connection.execute(lease, {"stream": stream}).first() is not None


@dataclass(frozen=True, slots=True)
class Taken:
    """What one transaction took off its stream, in entries, rows and bytes, and how long it has taken so far."""

    entries: int
    duplicates: int
    rows: int
    size_bytes: int
    seconds: float


def move_cursor(connection: Connection, stream: str, last_id: str, taken: Taken) -> None:
    """Record how far the stream is committed, and what came by."""
    values = {
        "stream": stream,
        "last_id": last_id,
        "entries": taken.entries,
        "duplicates": taken.duplicates,
        "rows": taken.rows,
        "bytes": taken.size_bytes,
        "seconds": taken.seconds,
        "bucket": bucket_of(taken.seconds),
    }
    connection.execute(_MOVE_CURSOR, values)


def last_id_of(connection: Connection, stream: str) -> str:
    """Return how far the stream is committed."""
    known = text("SELECT last_id FROM ingest_cursors WHERE stream = :stream")
    return str(connection.execute(known, {"stream": stream}).scalar_one())


_MOVE_CURSOR: Final = text(
    "UPDATE ingest_cursors SET last_id = :last_id, entries = entries + :entries, "
    "duplicates = duplicates + :duplicates, rows_in = rows_in + :rows, bytes_in = bytes_in + :bytes, "
    "drain_counts[:bucket] = drain_counts[:bucket] + 1, drain_seconds = drain_seconds + :seconds, "
    "moved_at = now() WHERE stream = :stream"
)


def save_dead_letters(connection: Connection, stream: str, kind: Kind, letters: Sequence[Rejected]) -> None:
    """Keep these entries with their raw bytes; one that is here already (read twice) is kept once."""
    if not letters:
        return
    statement = insert(dead_letters).on_conflict_do_nothing()
    connection.execute(statement, [_letter_values(stream, kind, letter) for letter in letters])


@contextmanager
def copying(connection: Connection, storage: RowStorage) -> Iterator[Callable[[rows.Row], None]]:
    """COPY rows (`trainwire.workers.drain.rows`) into their table; yields a function that takes one row.

    Postgres works on what it has been given while the caller makes the next rows. Raises `Refused` when it
    will not have them.
    """
    statement = f"COPY {storage.table.name} ({', '.join(storage.columns)}) FROM STDIN WITH (FORMAT BINARY)"
    driver: Any = connection.connection.driver_connection
    with postgres_errors(), _known_to_pool(connection), driver.cursor() as cursor, cursor.copy(statement) as copy:
        copy.set_types([_copied_type(storage.table.c[name]) for name in storage.columns])
        yield copy.write_row


def _copied_type(column: Column[Any]) -> str:
    """Return the type that psycopg encodes a value for; a time is given as the integer that it is in Postgres."""
    return "bigint" if isinstance(column.type, DateTime) else sql_type(column).lower()


@contextmanager
def _known_to_pool(connection: Connection) -> Iterator[None]:
    """Close the session where the driver itself has an error after which it is of no use."""
    try:
        yield
    except psycopg.Error as exc:
        if ends_session(exc):
            connection.invalidate(exc)
        raise


def _first_line(cause: object) -> str:
    return str(cause).strip().partition("\n")[0]


def _letter_values(stream: str, kind: Kind, letter: Rejected) -> dict[str, Any]:
    raw = msgspec.msgpack.encode(dict(letter.raw.fields))
    return {
        "stream": stream,
        "entry_id": letter.raw.entry_id,
        "kind": kind,
        "job_id": letter.job_id,
        "source": letter.source,
        "seq": letter.seq,
        "reason": letter.reason,
        "detail": visible(letter.detail),
        "raw": raw,
        "raw_sha256": hashlib.sha256(raw).digest(),
    }
