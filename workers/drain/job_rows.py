"""The rows of jobs and of their attempts, as a drain locks, reads and writes them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, text

from trainwire.schemas.tables import training_attempts, training_jobs
from trainwire.stores.postgres.checkpoints import UNUSABLE
from trainwire.stores.postgres.columns import MOST_SHOWN_NAMES, first_names
from trainwire.workers.drain import rows
from trainwire.workers.drain.attempts import FIELDS, AttemptKey
from trainwire.workers.drain.jobs import COLUMNS, JSON_COLUMNS, LOADED_COLUMNS, RESULTS, UNLOADED, JobState
from trainwire.workers.drain.recordset import encoded, recordset
from trainwire.workers.errors import Unavailable


def lock_jobs(connection: Connection, job_ids: Iterable[int]) -> dict[int, JobState]:
    """Create what is missing of these jobs and lock them all, always in the order of their ids.

    First all inserts, then all locks: drains that share jobs wait for one another and never in a circle.
    Deleted jobs are neither created nor returned.
    """
    ids = sorted(set(job_ids))
    created = connection.execute(_CREATE, {"ids": ids}).rowcount
    found = connection.execute(_LOCK, {"ids": ids})
    unloaded: dict[str, Any] = dict.fromkeys(RESULTS, UNLOADED)
    jobs = {row["id"]: JobState(**row, **unloaded) for row in found.mappings()}
    # A deletion removes the job's row together with its tombstone: rows that were there have none.
    return _without_deleted(connection, ids, jobs) if created or len(jobs) < len(ids) else jobs


def load_results(connection: Connection, jobs: Iterable[JobState]) -> None:
    """Read the results of these jobs that were not loaded, as many names of each as an event carries."""
    wanted = {job.id: job for job in jobs if any(getattr(job, name) is UNLOADED for name in RESULTS)}
    found = connection.execute(_LOAD_RESULTS, {"ids": list(wanted)}).mappings() if wanted else ()
    for row in found:
        job = wanted[row["id"]]
        for name in RESULTS:
            if getattr(job, name) is UNLOADED:
                setattr(job, name, row[name])


def note_discarded(connection: Connection, stream: str, messages: Mapping[int, int]) -> None:
    """Count messages of deleted jobs, given by job, that were acknowledged and not stored."""
    if messages:
        jobs = {"jobs": list(messages), "counts": list(messages.values())}
        connection.execute(_COUNT_OF_JOBS, jobs)
        connection.execute(_COUNT_OF_STREAM, {"stream": stream, "count": sum(messages.values())})


def _without_deleted(connection: Connection, ids: list[int], jobs: dict[int, JobState]) -> dict[int, JobState]:
    """Return the jobs that have no tombstone; remove the rows that `lock_jobs` has created of the others."""
    deleted = set(connection.execute(_TOMBSTONES, {"ids": ids}).scalars())
    if gone := set(ids) - jobs.keys() - deleted:
        raise Unavailable(f"the rows of jobs {sorted(gone)} were removed by someone else: try again")
    if deleted:
        connection.execute(_REMOVE, {"ids": sorted(deleted)})
    return {job_id: job for job_id, job in jobs.items() if job_id not in deleted}


def save_jobs(connection: Connection, jobs: Collection[JobState], before: Mapping[int, JobState]) -> None:
    """Write the jobs back and stamp that they were heard of; JSON that is as it was `before` is left alone."""
    if jobs:
        connection.execute(_SAVE_JOBS, {"rows": encoded(_job_values(job, before[job.id]) for job in jobs)})


def save_statuses(connection: Connection, jobs: Collection[JobState]) -> None:
    """Write how these jobs stand; that nothing was heard of them is no news of them."""
    if jobs:
        values = ({name: getattr(job, name) for name in _OF_STATUS} for job in jobs)
        connection.execute(_SAVE_STATUSES, {"rows": encoded(values)})


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


def load_spans(
    connection: Connection, job_ids: Collection[int]
) -> list[tuple[int, int, datetime | None, datetime | None]]:
    """Return (job, attempt, began, ended) of all attempts of these jobs."""
    return [tuple(row) for row in connection.execute(_SPANS, {"ids": list(job_ids)})] if job_ids else []


def missing_checkpoints(connection: Connection, named: Collection[tuple[int, str]]) -> set[tuple[int, str]]:
    """Return those (job, URI) pairs of which the newest checkpoint row is known to have no usable file."""
    wanted = {"jobs": [job_id for job_id, _ in named], "uris": [uri for _, uri in named]}
    return {(job_id, uri) for job_id, uri in connection.execute(_MISSING, wanted)} if named else set()


def save_attempts(connection: Connection, states: Iterable[JobState]) -> None:
    """Write these attempts, and count the change of those that are not as they were."""
    values = [_attempt_values(state) for state in sorted(states, key=lambda state: (state.id, state.attempt))]
    if values:
        connection.execute(_SAVE_ATTEMPTS, {"rows": encoded(values)})


def _job_values(job: JobState, before: JobState) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(job, name) for name in COLUMNS}
    for name in JSON_COLUMNS:
        keeps = values[_keeps(name)] = values[name] is getattr(before, name)
        values[name] = None if keeps else _raw_json(values[name])
    return values


def _attempt_values(state: JobState) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(state, name) for name in FIELDS}
    json_values = {name: _raw_json(values[name]) for name in ("params", "tags")}
    return values | json_values | {"job_id": state.id, "attempt": state.attempt}


def _raw_json(value: object) -> msgspec.Raw | None:
    return None if value is None else msgspec.Raw(rows.jsonb_text(value))


def _keeps(name: str) -> str:
    return f"keeps_{name}"


def _assignments() -> str:
    kept = {name: f"CASE WHEN {_keeps(name)} THEN job.{name} ELSE said.{name} END" for name in JSON_COLUMNS}
    return ", ".join(f"{name} = {kept.get(name, f'said.{name}')}" for name in COLUMNS if name != "id")


_CREATE: Final = text(
    "INSERT INTO training_jobs (id) SELECT id FROM unnest(CAST(:ids AS bigint[])) AS id ORDER BY id "
    "ON CONFLICT DO NOTHING"
)
_LOCK: Final = text(
    f"SELECT {', '.join(LOADED_COLUMNS)} FROM training_jobs WHERE id = ANY(:ids) ORDER BY id FOR UPDATE"  # noqa: S608 - our own column names
)
_RESULTS: Final = ", ".join(f"{first_names(name, MOST_SHOWN_NAMES)} AS {name}" for name in RESULTS)
_LOAD_RESULTS: Final = text(f"SELECT id, {_RESULTS} FROM training_jobs WHERE id = ANY(:ids)")  # noqa: S608
_TOMBSTONES: Final = text("SELECT job_id FROM deleted_jobs WHERE job_id = ANY(:ids)")
_REMOVE: Final = text("DELETE FROM training_jobs WHERE id = ANY(:ids)")
# Locked in order, so that two drains with messages of the same jobs do not wait for each other.
_COUNT_OF_JOBS: Final = text(
    "WITH locked AS (SELECT job_id FROM deleted_jobs WHERE job_id = ANY(CAST(:jobs AS bigint[])) "
    "ORDER BY job_id FOR UPDATE) "
    "UPDATE deleted_jobs AS tombstone SET discarded_messages = discarded_messages + counted.messages, "
    "discarded_at = now() FROM locked JOIN unnest(CAST(:jobs AS bigint[]), CAST(:counts AS bigint[])) "
    "AS counted(job_id, messages) USING (job_id) WHERE tombstone.job_id = locked.job_id"
)
_COUNT_OF_STREAM: Final = text("UPDATE ingest_cursors SET discarded = discarded + :count WHERE stream = :stream")
_SAVE_JOBS: Final = text(
    f"UPDATE training_jobs AS job SET {_assignments()}, last_seen_at = now(), settled = '', "  # noqa: S608 - our own column names
    "logs_settled = false, metrics_settled = false "  # of older versions, as in move_back
    f"FROM {recordset(training_jobs, COLUMNS, **{_keeps(name): 'boolean' for name in JSON_COLUMNS})} "
    "WHERE job.id = said.id"
)
_OF_STATUS: Final = ("id", "status", "quiet_since", "status_reason")
_SAVE_STATUSES: Final = text(
    "UPDATE training_jobs AS job SET status = said.status, quiet_since = said.quiet_since, "  # noqa: S608 - our own column names
    f"status_reason = said.status_reason FROM {recordset(training_jobs, _OF_STATUS)} WHERE job.id = said.id"
)
_MISSING: Final = text(
    "SELECT job_id, uri FROM ("  # noqa: S608 - our own expression
    f"SELECT DISTINCT ON (job_id, uri) job_id, uri, {UNUSABLE} AS is_unusable FROM training_checkpoints "
    "JOIN unnest(CAST(:jobs AS bigint[]), CAST(:uris AS text[])) AS wanted(job_id, uri) USING (job_id, uri) "
    "ORDER BY job_id, uri, seq DESC) AS newest WHERE is_unusable"
)
_SPANS: Final = text(
    "SELECT job_id, attempt, started_at, completed_at FROM training_attempts WHERE job_id = ANY(:ids)"
)
_LOADED_OF_ATTEMPT: Final = tuple(name for name in FIELDS if name not in {"params", "tags"})
_OF_ATTEMPT: Final = ("job_id", "attempt", *FIELDS)
_SAVE_ATTEMPTS: Final = text(
    f"""
    INSERT INTO training_attempts AS known ({", ".join(_OF_ATTEMPT)}, changes)
    SELECT {", ".join(_OF_ATTEMPT)}, 1 FROM {recordset(training_attempts, _OF_ATTEMPT)}
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
    """  # noqa: S608 - our own column names
)
