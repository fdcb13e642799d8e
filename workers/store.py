"""The Postgres side of a drain: the lease, the jobs, the positions, the rows, all in one transaction."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import psycopg
from sqlalchemy import Connection, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError

from schemas.routes import Kind
from schemas.tables import dead_letters, ingest_cursors
from stores.connections import has_lost_statements, postgres_trouble
from workers import rows
from workers.attempts import FIELDS, AttemptKey
from workers.decoding import Rejected, visible
from workers.durations import bucket_of
from workers.errors import Refused, Unavailable, WrongPooler
from workers.jobs import COLUMNS, JSON_COLUMNS, LOADED_COLUMNS, JobState
from workers.positions import Position

SourceKey = tuple[int, str, Kind]
"""Job, source, kind."""


@dataclass(slots=True)
class SourceRow:
    """One row of source_positions."""

    attempt: int
    position: Position
    dead_lettered: int = 0
    produced: int | None = None
    dropped: int | None = None


_REFUSED_CLASSES: Final = ("22", "23", "54")
"""SQLSTATE classes: data exception, integrity constraint violation, program limit exceeded."""
_PASSING_CLASSES: Final = ("08", "40", "53", "55", "57")
"""Connection, rollback (deadlock, serialization), resources (disk, memory), lock, operator intervention."""


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
        lost = isinstance(cause, psycopg.OperationalError) and not state
        if lost or state[:2] in _PASSING_CLASSES:
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


_MOVE_CURSOR: Final = text(
    "UPDATE ingest_cursors SET last_id = :last_id, entries = entries + :entries, "
    "duplicates = duplicates + :duplicates, rows_in = rows_in + :rows, bytes_in = bytes_in + :bytes, "
    "drain_counts[:bucket] = drain_counts[:bucket] + 1, drain_seconds = drain_seconds + :seconds, "
    "moved_at = now() WHERE stream = :stream"
)


def lock_jobs(connection: Connection, job_ids: Iterable[int]) -> dict[int, JobState]:
    """Create what is missing of these jobs and lock them all, always in the order of their ids.

    First all inserts, then all locks: drains that share jobs wait for one another and never in a circle.
    """
    ids = sorted(set(job_ids))
    connection.execute(
        text(
            "INSERT INTO training_jobs (id) SELECT id FROM unnest(CAST(:ids AS bigint[])) AS id ORDER BY id "
            "ON CONFLICT DO NOTHING"
        ),
        {"ids": ids},
    )
    found = connection.execute(
        text(f"SELECT {', '.join(LOADED_COLUMNS)} FROM training_jobs WHERE id = ANY(:ids) ORDER BY id FOR UPDATE"),  # noqa: S608 - our own column names
        {"ids": ids},
    )
    return {row["id"]: JobState(**row) for row in found.mappings()}


def save_jobs(connection: Connection, jobs: Collection[JobState], before: Mapping[int, JobState]) -> None:
    """Write the jobs back and stamp that they were heard of; JSON that is as it was `before` is left alone."""
    values = [_job_values(job, before[job.id]) for job in sorted(jobs, key=lambda job: job.id)]
    if values:
        connection.execute(_SAVE_JOB, values)


def save_statuses(connection: Connection, jobs: Collection[JobState]) -> None:
    """Write how these jobs stand; that nothing was heard of them is no news of them."""
    if jobs:
        connection.execute(_SAVE_STATUS, [{name: getattr(job, name) for name in _OF_STATUS} for job in jobs])


def load_attempts(connection: Connection, keys: Collection[AttemptKey]) -> dict[AttemptKey, JobState]:
    """Return what is known of these attempts; params and tags are not loaded."""
    found = connection.execute(
        text(
            f"SELECT job_id AS id, attempt, {', '.join(_LOADED_OF_ATTEMPT)} FROM training_attempts "  # noqa: S608 - our own column names
            "JOIN unnest(CAST(:jobs AS bigint[]), CAST(:attempts AS int[])) AS wanted(job_id, attempt) "
            "USING (job_id, attempt)"
        ),
        {"jobs": [job for job, _ in keys], "attempts": [attempt for _, attempt in keys]},
    )
    return {(row["id"], row["attempt"]): JobState(**row) for row in found.mappings()}


def save_attempts(connection: Connection, states: Iterable[JobState]) -> None:
    """Write these attempts, and count the change of those that are not as they were."""
    values = [_attempt_values(state) for state in sorted(states, key=lambda state: (state.id, state.attempt))]
    if values:
        connection.execute(_SAVE_ATTEMPT, values)


def load_positions(connection: Connection, sources: Iterable[tuple[int, str]]) -> dict[SourceKey, SourceRow]:
    """Return what is known of these (job, source) pairs, in all kinds."""
    pairs = sorted(set(sources))
    found = connection.execute(
        text(
            "SELECT job_id, source, kind, attempt, last_seq, missing, dead_lettered, produced, dropped "
            "FROM source_positions JOIN unnest(CAST(:jobs AS bigint[]), CAST(:sources AS text[])) "
            "AS wanted(job_id, source) USING (job_id, source)"
        ),
        {"jobs": [job for job, _ in pairs], "sources": [source for _, source in pairs]},
    )
    return {
        (row.job_id, row.source, row.kind): SourceRow(
            row.attempt,
            Position(row.last_seq, [(first, last) for first, last in row.missing]),
            row.dead_lettered,
            row.produced,
            row.dropped,
        )
        for row in found
    }


def save_positions(connection: Connection, changed: dict[SourceKey, SourceRow]) -> None:
    """Write these positions, in the order of their keys."""
    if not changed:
        return
    connection.execute(
        _SAVE_POSITION,
        [
            {
                "job_id": job_id,
                "source": source,
                "kind": kind,
                "attempt": row.attempt,
                "last_seq": row.position.last_seq,
                "missing": msgspec.json.encode(row.position.missing).decode(),
                "dead_lettered": row.dead_lettered,
                "produced": row.produced,
                "dropped": row.dropped,
            }
            for (job_id, source, kind), row in sorted(changed.items())
        ],
    )


def save_dead_letters(connection: Connection, stream: str, kind: Kind, letters: Sequence[Rejected]) -> None:
    """Keep these entries with their raw bytes; one that is here already (read twice) is kept once."""
    if not letters:
        return
    statement = insert(dead_letters).on_conflict_do_nothing()
    connection.execute(statement, [_letter_values(stream, kind, letter) for letter in letters])


@contextmanager
def copying(
    connection: Connection, table: str, columns: Mapping[str, str]
) -> Iterator[Callable[[rows.Row], None]]:
    """COPY rows into a table, by columns and their types (`workers.rows`); yields what takes one row.

    Postgres works on what it has been given while the caller makes the next rows. Raises `Refused` when it
    will not have them.
    """
    statement = f"COPY {table} ({', '.join(columns)}) FROM STDIN WITH (FORMAT BINARY)"
    driver: Any = connection.connection.driver_connection
    with postgres_errors(), driver.cursor() as cursor, cursor.copy(statement) as copy:
        copy.set_types(list(columns.values()))
        yield copy.write_row


def _first_line(cause: object) -> str:
    return str(cause).strip().partition("\n")[0]


def _job_values(job: JobState, before: JobState) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(job, name) for name in COLUMNS}
    for name in JSON_COLUMNS:
        value = values[name]
        keeps = values[f"keeps_{name}"] = value is getattr(before, name)
        values[name] = None if keeps or value is None else rows.jsonb_text(value).decode()
    values["job_id"] = values.pop("id")
    return values


def _attempt_values(state: JobState) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(state, name) for name in FIELDS}
    for name in ("params", "tags"):
        values[name] = None if values[name] is None else rows.jsonb_text(values[name]).decode()
    return values | {"job_id": state.id, "attempt": state.attempt}


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


def _assignments() -> str:
    casts = {name: f"CASE WHEN :keeps_{name} THEN {name} ELSE CAST(:{name} AS jsonb) END" for name in JSON_COLUMNS}
    return ", ".join(f"{name} = {casts.get(name, f':{name}')}" for name in COLUMNS if name != "id")


_SAVE_JOB: Final = text(
    f"UPDATE training_jobs SET {_assignments()}, last_seen_at = now(), logs_settled = false, "  # noqa: S608 - our own column names
    "metrics_settled = false WHERE id = :job_id"
)
_OF_STATUS: Final = ("id", "status", "quiet_since", "status_reason")
_SAVE_STATUS: Final = text(
    "UPDATE training_jobs SET status = :status, quiet_since = :quiet_since, status_reason = :status_reason "
    "WHERE id = :id"
)
_LOADED_OF_ATTEMPT: Final = tuple(name for name in FIELDS if name not in {"params", "tags"})
_SAVE_ATTEMPT: Final = text(
    """
    INSERT INTO training_attempts AS known (job_id, attempt, name, status, started_at, completed_at, exit_code,
        error_message, params, tags, mlflow_run_id, changes)
    VALUES (:job_id, :attempt, :name, :status, :started_at, :completed_at, :exit_code,
        :error_message, CAST(:params AS jsonb), CAST(:tags AS jsonb), :mlflow_run_id, 1)
    ON CONFLICT (job_id, attempt) DO UPDATE SET name = excluded.name, status = excluded.status,
        started_at = excluded.started_at, completed_at = excluded.completed_at, exit_code = excluded.exit_code,
        error_message = excluded.error_message, params = coalesce(excluded.params, known.params),
        tags = coalesce(excluded.tags, known.tags),
        -- The run of the job's row may be the one that we made for it.
        mlflow_run_id = coalesce(nullif(excluded.mlflow_run_id, known.mirror_run_id), known.mlflow_run_id),
        changes = known.changes + 1
    WHERE (known.name, known.status, known.started_at, known.completed_at, known.exit_code, known.error_message,
            known.params, known.tags, known.mlflow_run_id)
        IS DISTINCT FROM (excluded.name, excluded.status, excluded.started_at, excluded.completed_at,
            excluded.exit_code, excluded.error_message, coalesce(excluded.params, known.params),
            coalesce(excluded.tags, known.tags),
            coalesce(nullif(excluded.mlflow_run_id, known.mirror_run_id), known.mlflow_run_id))
    """
)
_SAVE_POSITION: Final = text(
    "INSERT INTO source_positions "
    "(job_id, source, kind, attempt, last_seq, missing, dead_lettered, produced, dropped) VALUES "
    "(:job_id, :source, :kind, :attempt, :last_seq, CAST(:missing AS jsonb), :dead_lettered, :produced, :dropped) "
    "ON CONFLICT (job_id, source, kind) DO UPDATE SET attempt = excluded.attempt, "
    "last_seq = excluded.last_seq, missing = excluded.missing, dead_lettered = excluded.dead_lettered, "
    "produced = excluded.produced, dropped = excluded.dropped, updated_at = now()"
)
