"""Locks, reads and writes the rows of jobs and of their attempts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from copy import copy
from datetime import datetime
from itertools import chain
from operator import attrgetter
from typing import Any, Final

import msgspec
import psycopg
from sqlalchemy import Connection, text

from trainwire.schemas.tables import training_attempts, training_jobs
from trainwire.schemas.tables.kinds import ROW_KINDS
from trainwire.schemas.wire.messages import FREE_MAPS, Body
from trainwire.stores.postgres.checkpoints import UNUSABLE
from trainwire.stores.postgres.columns import MOST_SHOWN_NAMES, RESULTS, first_names
from trainwire.stores.postgres.deletion import deleted_among
from trainwire.workers.drain import rows
from trainwire.workers.drain.jobs import COLUMNS, JSON_COLUMNS, LOADED_COLUMNS, UNLOADED, JobState
from trainwire.workers.drain.store import encoded, numbers_array, pipelined, recordset
from trainwire.workers.errors import Unavailable

AttemptKey = tuple[int, int]
"""Identifies an attempt: (job, attempt)."""
ATTEMPT_FIELDS: Final = (
    *("name", "status", "started_at", "completed_at", "exit_code", "error_message", "params", "tags"),
    *("provenance", "mlflow_run_id", "resume_step"),
)
"""The fields of a job's state that are also stored for each of its attempts, in `training_attempts`."""


def lock_jobs(connection: Connection, job_ids: Iterable[int]) -> dict[int, JobState]:
    """Create missing jobs, lock the rows of all `job_ids` in the order of their ids, and return their states.

    Deleted jobs are neither created nor returned. All inserts come before all locks, so that drains with the same
    jobs do not deadlock: a transaction that waits for an insert of another transaction has locked no row that
    existed before. Raises `Unavailable` if a job is deleted meanwhile.
    """
    with pipelined(connection) as driver:
        lock = JobLock(driver, job_ids)
    return lock.jobs(connection)


class JobLock:
    """The statements of `lock_jobs`, which `driver` sends with others in one round trip (`store.pipelined`)."""

    def __init__(self, driver: psycopg.Connection[Any], job_ids: Iterable[int]) -> None:
        self._ids = sorted(set(job_ids))
        given = {"ids": numbers_array(self._ids)}
        self._created = driver.execute(_CREATE, given)
        self._locked = driver.execute(_LOCK, given)

    def jobs(self, connection: Connection) -> dict[int, JobState]:
        """Return the states of the jobs that are not deleted; called after the block of `pipelined`."""
        created = {row[0] for row in self._created}
        jobs = {}
        for row in self._locked:
            job = jobs[row[0]] = JobState(*row)
            job.final_metrics = job.best_metrics = UNLOADED
        jobs |= {job_id: JobState(job_id) for job_id in created}
        # A deletion removes the job's row together with its tombstone: rows that were there have none.
        return _without_deleted(connection, self._ids, jobs) if created or len(jobs) < len(self._ids) else jobs


def load_results(connection: Connection, jobs: Iterable[JobState]) -> None:
    """Read `final_metrics` and `best_metrics` from Postgres for jobs whose state does not contain them yet.

    From each, at most as many metrics are read as an event can contain.
    """
    wanted = {job.id: job for job in jobs if any(getattr(job, name) is UNLOADED for name in RESULTS)}
    found = connection.execute(_LOAD_RESULTS, {"ids": list(wanted)}).mappings() if wanted else ()
    for row in found:
        job = wanted[row["id"]]
        for name in RESULTS:
            if getattr(job, name) is UNLOADED:
                setattr(job, name, row[name])


def note_discarded(connection: Connection, stream: str, messages: Mapping[int, int]) -> None:
    """Count messages that were acknowledged but not stored because their job was deleted.

    `messages` maps job numbers to numbers of messages.
    """
    if messages:
        jobs = {"jobs": list(messages), "counts": list(messages.values())}
        connection.execute(_COUNT_OF_JOBS, jobs)
        connection.execute(_COUNT_OF_STREAM, {"stream": stream, "count": sum(messages.values())})


def _without_deleted(connection: Connection, ids: list[int], jobs: dict[int, JobState]) -> dict[int, JobState]:
    """Return the jobs that have no tombstone. Delete the rows that `lock_jobs` created for deleted jobs.

    Raises `Unavailable` if one of `ids` has neither a row nor a tombstone.
    """
    deleted = deleted_among(connection, ids)
    if gone := set(ids) - jobs.keys() - deleted:
        raise Unavailable(f"the rows of jobs {sorted(gone)} were deleted by another process: try again")
    if deleted:
        connection.execute(_REMOVE, {"ids": sorted(deleted)})
    return {job_id: job for job_id, job in jobs.items() if job_id not in deleted}


def save_jobs(
    connection: Connection, jobs: Collection[JobState], before: Mapping[int, JobState], last_seq: str
) -> list[JobState]:
    """Write job states and the time of the last message; return the jobs in which more than `last_seq` changed.

    All rows are locked already, so the order of the updates does not matter. `before` are the states in Postgres:
    a JSON value is written only if the state contains another object than `before`. `last_seq` is the name of the
    column that counts the new rows.
    """
    counts = {job.id: getattr(job, last_seq) for job in jobs if _is_equal_but(last_seq, job, before[job.id])}
    changed = [job for job in jobs if job.id not in counts]
    if counts:
        given = {"ids": numbers_array(counts), "counts": numbers_array(counts.values())}
        connection.execute(_COUNT[last_seq], given)
    if changed:
        values = (_job_values(job, before[job.id]) for job in changed)
        connection.execute(_SAVE_JOBS, {"rows": encoded(_JOB_VALUES, values)})
    return changed


def _is_equal_but(name: str, job: JobState, before: JobState) -> bool:
    same = copy(before)
    setattr(same, name, getattr(job, name))
    return job == same


def save_statuses(connection: Connection, jobs: Collection[JobState]) -> None:
    """Write status, `status_reason` and `quiet_since` of `jobs`; the time of their last message is not changed."""
    if jobs:
        connection.execute(_SAVE_STATUSES, {"rows": encoded(_OF_STATUS, map(attrgetter(*_OF_STATUS), jobs))})


def load_attempts(connection: Connection, keys: Collection[AttemptKey]) -> dict[AttemptKey, JobState]:
    """Return the stored states of those attempts in `keys` that exist, without params, tags and provenance."""
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
    """Return (job, attempt, start time, end time) for all attempts of `job_ids`; a time may be None."""
    return [tuple(row) for row in connection.execute(_SPANS, {"ids": list(job_ids)})] if job_ids else []


def missing_checkpoints(connection: Connection, named: Collection[tuple[int, str]]) -> set[tuple[int, str]]:
    """Return those of the (job, URI) pairs whose newest checkpoint row is marked as having no usable file."""
    wanted = {"jobs": [job_id for job_id, _ in named], "uris": [uri for _, uri in named]}
    return {(job_id, uri) for job_id, uri in connection.execute(_MISSING, wanted)} if named else set()


def save_attempts(connection: Connection, states: Iterable[JobState]) -> None:
    """Write the states of attempts, and increment the column `changes` of those that differ from their rows.

    Changes to a status other than `pending` and `running` are recorded as occurrences for alert rules; to `lost`
    only for the newest attempt of a job.
    """
    values = [_attempt_values(state) for state in sorted(states, key=attrgetter("id", "attempt"))]
    if values:
        connection.execute(_SAVE_ATTEMPTS, {"rows": encoded(_OF_ATTEMPT, values)})


class EarlierAttempts:
    """Collects changes to attempts that are not the newest of their job, for the messages of one transaction.

    A late message of such an attempt changes the row of the attempt, not that of the job.
    """

    def __init__(self) -> None:
        self._superseded: dict[AttemptKey, JobState] = {}
        self._late: dict[AttemptKey, list[tuple[Body, bool]]] = defaultdict(list)

    def note(self, job: JobState, body: Body, attempt: int, is_stated: bool) -> None:
        """Record a message before it changes the state of its job. For `is_stated` see `JobState.fold`."""
        if job.status == "pending" or attempt == job.attempt:
            return
        if attempt < job.attempt:
            self._late[job.id, attempt].append((body, is_stated))
        else:
            self._superseded[job.id, job.attempt] = _as_earlier(job)

    def fold(self, connection: Connection) -> list[JobState]:
        """Return the states of the recorded attempts, with their late messages applied, for `save_attempts`."""
        unknown = self._late.keys() - self._superseded.keys()
        states = self._superseded | (load_attempts(connection, unknown) if unknown else {})
        for (job_id, attempt), bodies in self._late.items():
            state = states.get((job_id, attempt)) or JobState(job_id, attempt=attempt)
            for body, is_stated in bodies:
                state.fold(body, attempt, is_stated=is_stated)
            states[job_id, attempt] = _as_earlier(state)
        return list(states.values())


def has_changed(job: JobState, before: JobState) -> bool:
    """Return whether `job` has a new attempt, or whether a field of the attempt differs from `before`."""
    return job.attempt != before.attempt or any(
        getattr(job, name) != getattr(before, name) for name in ATTEMPT_FIELDS
    )


def _as_earlier(state: JobState) -> JobState:
    """Return a copy of the state of an earlier attempt; its status becomes `lost` if it has not ended."""
    earlier = copy(state)
    if not earlier.is_finished:
        earlier.status = "lost"
    return earlier


def _job_values(job: JobState, before: JobState) -> tuple[Any, ...]:
    """Return the values of one row for `_SAVE_JOBS`, in the order of `_JOB_VALUES`."""
    of_json = zip(_json_values(job), _json_values(before), strict=True)
    changes = [(None, None) if value is was else (_raw_json(value), True) for value, was in of_json]
    return (*_loaded_values(job), *chain.from_iterable(changes))


def _attempt_values(state: JobState) -> tuple[Any, ...]:
    """Return the values of one row for `_SAVE_ATTEMPTS`, in the order of `_OF_ATTEMPT`."""
    return (
        state.id,
        state.attempt,
        *_values_of_attempt(state),
        *(_raw_json(getattr(state, name)) for name in FREE_MAPS),
    )


def _raw_json(value: object) -> msgspec.Raw | None:
    return None if value is None else msgspec.Raw(rows.jsonb_text(value))


def _sets(name: str) -> str:
    return f"sets_{name}"


def _assignments() -> str:
    kept = {name: f"CASE WHEN {_sets(name)} THEN given.{name} ELSE job.{name} END" for name in JSON_COLUMNS}
    return ", ".join(f"{name} = {kept.get(name, f'given.{name}')}" for name in COLUMNS if name != "id")


_CREATE: Final = (
    "INSERT INTO training_jobs (id) SELECT id FROM unnest(CAST(%(ids)s AS bigint[])) AS id ORDER BY id "
    "ON CONFLICT DO NOTHING RETURNING id"
)
_LOCK: Final = (
    f"SELECT {', '.join(LOADED_COLUMNS)} FROM training_jobs "  # noqa: S608 - our own column names
    "WHERE id = ANY(CAST(%(ids)s AS bigint[])) ORDER BY id FOR UPDATE"
)
_RESULTS: Final = ", ".join(f"{first_names(name, MOST_SHOWN_NAMES)} AS {name}" for name in RESULTS)
_LOAD_RESULTS: Final = text(f"SELECT id, {_RESULTS} FROM training_jobs WHERE id = ANY(:ids)")  # noqa: S608
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
# The last two are of older versions, as in `move_back`.
_NEW_MESSAGE: Final = "last_seen_at = now(), settled = '', logs_settled = false, metrics_settled = false"
_JOB_VALUES: Final = (*LOADED_COLUMNS, *(given for name in JSON_COLUMNS for given in (name, _sets(name))))
_loaded_values: Final = attrgetter(*LOADED_COLUMNS)
_json_values: Final = attrgetter(*JSON_COLUMNS)
_SAVE_JOBS: Final = text(
    f"UPDATE training_jobs AS job SET {_assignments()}, {_NEW_MESSAGE} "  # noqa: S608 - our own column names
    f"FROM {recordset(training_jobs, COLUMNS, **{_sets(name): 'boolean' for name in JSON_COLUMNS})} "
    "WHERE job.id = given.id"
)
_COUNT: Final = {
    storage.last_seq: text(
        f"UPDATE training_jobs AS job SET {storage.last_seq} = given.count, {_NEW_MESSAGE} "  # noqa: S608
        "FROM unnest(CAST(:ids AS bigint[]), CAST(:counts AS bigint[])) AS given(id, count) "
        "WHERE job.id = given.id"
    )
    for storage in ROW_KINDS.values()
}
_OF_STATUS: Final = ("id", "status", "quiet_since", "status_reason")
_SAVE_STATUSES: Final = text(
    "UPDATE training_jobs AS job SET status = given.status, quiet_since = given.quiet_since, "  # noqa: S608 - our own column names
    f"status_reason = given.status_reason FROM {recordset(training_jobs, _OF_STATUS)} WHERE job.id = given.id"
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
_LOADED_OF_ATTEMPT: Final = tuple(name for name in ATTEMPT_FIELDS if name not in FREE_MAPS)
_OF_ATTEMPT: Final = ("job_id", "attempt", *_LOADED_OF_ATTEMPT, *FREE_MAPS)
_values_of_attempt: Final = attrgetter(*_LOADED_OF_ATTEMPT)
_UPDATED: Final = {name: f"excluded.{name}" for name in ATTEMPT_FIELDS} | {
    "params": "coalesce(excluded.params, known.params)",
    "tags": "coalesce(excluded.tags, known.tags)",
    # NULL || x is NULL
    "provenance": "coalesce(known.provenance || excluded.provenance, excluded.provenance, known.provenance)",
    "resume_step": "coalesce(excluded.resume_step, known.resume_step)",
    # The run in the job's row may be the mirror of this attempt, which is no run of its trainer.
    "mlflow_run_id": "coalesce(nullif(excluded.mlflow_run_id, known.mirror_run_id), known.mlflow_run_id)",
}
_EARLIER: Final = (
    "(SELECT earlier.status FROM training_attempts AS earlier "
    "WHERE earlier.job_id = saved.job_id AND earlier.attempt = saved.attempt)"
)
_JOB: Final = "(SELECT {column} FROM training_jobs WHERE id = saved.job_id)"
# Subqueries in place of joins, for which Postgres may read whole tables. They see the rows before this statement.
# An attempt that a newer one replaces is lost in its row, but no occurrence for alerts: its end may be on the way.
_SAVE_ATTEMPTS: Final = text(
    f"""
    WITH saved AS (
        INSERT INTO training_attempts AS known ({", ".join(_OF_ATTEMPT)}, changes)
        SELECT {", ".join(_OF_ATTEMPT)}, 1 FROM {recordset(training_attempts, _OF_ATTEMPT)}
        ON CONFLICT (job_id, attempt) DO UPDATE
        SET {", ".join(f"{name} = {value}" for name, value in _UPDATED.items())}, changes = known.changes + 1
        WHERE ({", ".join(f"known.{name}" for name in _UPDATED)}) IS DISTINCT FROM ({", ".join(_UPDATED.values())})
        RETURNING job_id, attempt, known.status, known.completed_at, known.error_message
    )
    INSERT INTO alert_occurrences (kind, value, job_id, attempt, content, occurred_at)
    SELECT 'status', status, job_id, attempt,
        CASE WHEN status IN ('lost', 'stalled') THEN {_JOB.format(column="status_reason")} ELSE error_message END,
        CASE WHEN status IN ('lost', 'stalled') THEN now() ELSE coalesce(completed_at, now()) END
    FROM saved WHERE status NOT IN ('pending', 'running') AND status IS DISTINCT FROM {_EARLIER}
        AND (status <> 'lost' OR attempt = {_JOB.format(column="attempt")})
    """  # noqa: S608 - our own column names
)
