"""The Postgres side of a drain: errors, leases and cursors of streams, COPY, JSON recordsets, dead letters."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

import msgspec
import psycopg
from sqlalchemy import Column, Connection, DateTime, Table, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError

from trainwire.schemas.keys import Kind
from trainwire.schemas.non_finite import shown_float
from trainwire.schemas.tables import ingest_cursors
from trainwire.schemas.tables.kinds import RowStorage
from trainwire.stores.postgres.connections import (
    LOCK_NOT_AVAILABLE,
    ends_session,
    has_lost_statements,
    is_unavailable,
    postgres_trouble,
)
from trainwire.stores.postgres.storable_text import storable_text
from trainwire.stores.tracing import span
from trainwire.workers.drain.decoding import Rejected
from trainwire.workers.drain.occurrences import insert_dead_letters
from trainwire.workers.drain.rows import Row
from trainwire.workers.durations import bucket_of
from trainwire.workers.errors import Refused, RowsLocked, Unavailable, WrongPooler

_REFUSED_CLASSES: Final = ("22", "23", "54")
"""SQLSTATE classes for which a retry is useless: data exception, integrity violation, program limit exceeded."""
LOCK_BRIEFLY: Final = "SET LOCAL lock_timeout = '5s'"
"""A drain that waits for a locked row occupies a pool process, and all jobs of its stream wait with it.

It is several times `LONGEST_BATCH_S`, because drains of other kinds lock the rows of the same jobs.
"""
SAVEPOINT: Final = "SAVEPOINT batch"
_ROLLBACK: Final = "ROLLBACK TO SAVEPOINT batch"
_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]


@contextmanager
def postgres_errors() -> Iterator[None]:
    """Translate Postgres errors in the block into `Refused` (bad values) and `Unavailable` (retry later).

    Other errors are bugs of ours and are not translated.
    """
    try:
        yield
    except (psycopg.Error, DBAPIError) as exc:
        cause = exc.orig if isinstance(exc, DBAPIError) else exc
        state = getattr(cause, "sqlstate", None) or ""
        if state[:2] in _REFUSED_CLASSES:
            raise Refused(_first_line(cause)) from exc
        if state == LOCK_NOT_AVAILABLE:
            raise RowsLocked(f"Postgres: {postgres_trouble(exc)}") from exc
        if has_lost_statements(exc):
            raise WrongPooler(f"Postgres: {postgres_trouble(exc)}") from exc
        if is_unavailable(exc):
            raise Unavailable(f"Postgres: {postgres_trouble(exc)}") from exc
        raise


@contextmanager
def pipelined(connection: Connection) -> Iterator[psycopg.Connection[Any]]:
    """Yield the driver's connection; its method `execute` sends a statement without waiting for its result.

    All statements of the block take one round trip, and are executed in their order, each as if it were sent
    alone. The results can be read from their cursors after the block. If one fails, those behind it are not
    executed, and the end of the block raises its error.
    """
    driver: Any = connection.connection.driver_connection
    with postgres_errors(), _invalidated(connection), driver.pipeline():
        yield driver


def roll_back_batch(connection: Connection) -> None:
    """Undo the statements since `SAVEPOINT` was executed last; the transaction goes on, also after an error."""
    connection.exec_driver_sql(_ROLLBACK)


def save_point(connection: Connection) -> None:
    """Execute `SAVEPOINT`, so that `roll_back_batch` keeps all earlier statements."""
    connection.exec_driver_sql(SAVEPOINT)


def take_lease(connection: Connection, stream: str) -> bool:
    """Lock the cursor row of the stream for this transaction; return False if another drain has locked it.

    A missing row is created first.
    """
    lease = text("SELECT 1 FROM ingest_cursors WHERE stream = :stream FOR UPDATE SKIP LOCKED")
    if connection.execute(lease, {"stream": stream}).first():
        return True
    known = text("SELECT 1 FROM ingest_cursors WHERE stream = :stream")
    if connection.execute(known, {"stream": stream}).first():
        return False
    # In a transaction of its own: an uncommitted insert would make the next drain wait instead of return.
    with connection.engine.begin() as at_once:
        at_once.execute(insert(ingest_cursors).values(stream=stream).on_conflict_do_nothing())
    return connection.execute(lease, {"stream": stream}).first() is not None


def locked_jobs(connection: Connection, job_ids: Iterable[int]) -> set[int]:
    """Return those of `job_ids` whose rows another session has locked; lock the others for this transaction."""
    given = {"ids": list(job_ids)}
    known = connection.execute(text("SELECT id FROM training_jobs WHERE id = ANY(:ids)"), given).scalars()
    free = text("SELECT id FROM training_jobs WHERE id = ANY(:ids) FOR UPDATE SKIP LOCKED")
    return set(known) - set(connection.execute(free, given).scalars())


@dataclass(frozen=True, slots=True)
class TransactionCounts:
    """The counts of one transaction of a drain, which `commit` adds to the totals of the stream.

    `entries` is the number of entries taken from the stream, `rows` the number of table rows written, `size_bytes`
    the size of the entries' values, `seconds` the duration so far.
    """

    entries: int
    duplicates: int
    rows: int
    size_bytes: int
    seconds: float


def commit(connection: Connection, stream: str, last_id: str, counts: TransactionCounts) -> None:
    """Set the cursor of a stream to the entry `last_id`, add `counts` to its totals, and commit."""
    values = {"stream": stream, "last_id": last_id, "bucket": bucket_of(counts.seconds), **asdict(counts)}
    with span("commit"), pipelined(connection) as driver:
        driver.execute(_MOVE_CURSOR, values)
        connection.commit()


def last_id_of(connection: Connection, stream: str) -> str:
    """Return the cursor of a stream: the id of the last committed entry."""
    known = text("SELECT last_id FROM ingest_cursors WHERE stream = :stream")
    return str(connection.execute(known, {"stream": stream}).scalar_one())


def save_dead_letters(connection: Connection, stream: str, kind: Kind, letters: Sequence[Rejected]) -> None:
    """Insert entries with their raw bytes into `dead_letters`; see `insert_dead_letters`."""
    if letters:
        insert_dead_letters(connection, [_letter_values(stream, kind, letter) for letter in letters])


@contextmanager
def copying(connection: Connection, storage: RowStorage) -> Iterator[Callable[[Row], None]]:
    """Open a COPY into the table of `storage`; yield a function that writes one row.

    Postgres processes rows while the caller makes the next ones (`trainwire.workers.drain.rows`). Raises `Refused`
    if it rejects a row.
    """
    statement = f"COPY {storage.table.name} ({', '.join(storage.columns)}) FROM STDIN WITH (FORMAT BINARY)"
    driver: Any = connection.connection.driver_connection
    with postgres_errors(), _invalidated(connection), driver.cursor() as cursor, cursor.copy(statement) as copy:
        copy.set_types([_copied_type(storage.table.c[name]) for name in storage.columns])
        yield copy.write_row


def recordset(table: Table, columns: Iterable[str], **others: str) -> str:
    """Return SQL for a table named `given`, made from the JSON array in the parameter `:rows`.

    Its columns are those of `table` that `columns` names, and `others` (name and SQL type). One statement with all
    rows avoids planning and a round trip for each row, which would take most of the time of a drain with many
    jobs.
    """
    types = {name: sql_type(table.c[name]) for name in columns} | others
    described = ", ".join(f"{name} {type_}" for name, type_ in types.items())
    return f"jsonb_to_recordset(CAST(:rows AS jsonb)) AS given({described})"


def sql_type(column: Column[Any]) -> str:
    """Return the type of a column in SQL syntax."""
    return column.type.compile(_DIALECT)


def encoded(columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return rows as a JSON array, for the parameter `:rows` of the SQL that `recordset` returns.

    NULLs are left out; non-finite floats are strings. The value of a JSONB column is a `msgspec.Raw` of JSON that
    Postgres accepts (`trainwire.workers.drain.rows.jsonb_text`).
    """
    records = [
        {name: value for name, value in zip(columns, row, strict=True) if value is not None} for row in rows
    ]
    for record in records:
        for name, value in record.items():
            if value.__class__ is float:
                record[name] = shown_float(value)
    return msgspec.json.encode(records).decode()


def numbers_array(numbers: Iterable[int]) -> str:
    """Return integers as the text of a Postgres array, several times faster than psycopg does."""
    return "{" + ",".join(map(str, numbers)) + "}"


def text_array(values: Iterable[str]) -> str:
    """Return strings as the text of a Postgres array."""
    escaped = (value.replace("\\", "\\\\").replace('"', '\\"') for value in values)
    return "{" + ",".join([f'"{value}"' for value in escaped]) + "}"


def _copied_type(column: Column[Any]) -> str:
    """Return the name of the Postgres type as which COPY sends a column.

    Times are sent as integers, which is Postgres' binary format.
    """
    return "bigint" if isinstance(column.type, DateTime) else sql_type(column).lower()


@contextmanager
def _invalidated(connection: Connection) -> Iterator[None]:
    """Invalidate the pooled connection if a driver error ends its session; SQLAlchemy does not see such errors."""
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
        "detail": storable_text(letter.detail),
        "raw": raw,
        "raw_sha256": hashlib.sha256(raw).digest(),
    }


_MOVE_CURSOR: Final = (
    "UPDATE ingest_cursors SET last_id = %(last_id)s, entries = entries + %(entries)s, "
    "duplicates = duplicates + %(duplicates)s, rows_in = rows_in + %(rows)s, "
    "bytes_in = bytes_in + %(size_bytes)s, "
    "drain_counts[%(bucket)s] = drain_counts[%(bucket)s] + 1, drain_seconds = drain_seconds + %(seconds)s, "
    "moved_at = now() WHERE stream = %(stream)s"
)
