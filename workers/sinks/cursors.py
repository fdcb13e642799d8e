"""The Postgres side of deliveries: leases and cursors of jobs, outages of sinks, dead letters of refused rows."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, text

from trainwire.schemas.sinks import ROWS, RowKind
from trainwire.stores.postgres.storable_text import storable_text
from trainwire.workers.drain.occurrences import insert_dead_letters
from trainwire.workers.sinks.base import Delivered

QUIET_S: Final = 120.0
"""Jobs that sent messages within this time are not marked as settled, because they will probably send more."""
SETTLED_AT_ONCE: Final = 5000

_LEASE: Final = "hashtextextended(:sink || ':' || id, 0)"
"""SQL expression: the key of the advisory lock that is the lease on a job for a sink."""


@dataclass(slots=True)
class DeliveryCursor:
    """How far a sink has confirmed the rows of a job; `state` is the JSON from `Delivered.state`."""

    confirmed_seq: int = 0
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SinkState:
    """Whether a sink is reachable, and when to try it again.

    `next_probe_at` is None if the sink is reachable, else the time of the next probe. `attempts` is the number of
    consecutive failures. `is_due` is True if the sink is reachable, or if the time of the next probe has come.
    """

    attempts: int
    next_probe_at: datetime | None
    is_due: bool


def lease_jobs(connection: Connection, sink: str, job_ids: Collection[int]) -> list[int]:
    """Lock those of the jobs that no other transaction has locked for this sink; return their ids in order.

    The locks end with this transaction. They are advisory, because cursors are written in other transactions while
    they are held. Jobs that do not exist (any more) are omitted, so that no cursor of a deleted job is written.
    """
    ids = "unnest(CAST(:ids AS bigint[])) AS id"
    leased = text(f"SELECT id FROM {ids} WHERE pg_try_advisory_xact_lock({_LEASE}) ORDER BY id")  # noqa: S608
    found = list(connection.execute(leased, {"ids": sorted(job_ids), "sink": sink}).scalars())
    # A separate statement, so that its snapshot is taken after the locks.
    existing = text("SELECT id FROM training_jobs WHERE id = ANY(:ids) ORDER BY id")
    return list(connection.execute(existing, {"ids": found}).scalars()) if found else []


def await_lease(connection: Connection, sink: str, job_id: int) -> None:
    """Lock a job for this sink until the transaction ends.

    Waits up to the session's `lock_timeout`, and then raises an error that `postgres_errors` translates to
    `Unavailable`.
    """
    job = "(SELECT CAST(:job_id AS bigint) AS id) AS job"
    waiting = text(f"SELECT pg_advisory_xact_lock({_LEASE}) FROM {job}")  # noqa: S608
    connection.execute(waiting, {"sink": sink, "job_id": job_id})


def read_cursors(connection: Connection, sink: str, job_ids: Sequence[int]) -> dict[int, DeliveryCursor]:
    """Return the cursors of `job_ids` by job; for a job that has none, a cursor at row 0, which is not stored."""
    found = connection.execute(
        text(
            "SELECT job_id, confirmed_seq, state FROM delivery_cursors "
            "WHERE sink = :sink AND job_id = ANY(:job_ids)"
        ),
        {"sink": sink, "job_ids": list(job_ids)},
    )
    known = {job_id: DeliveryCursor(seq, state) for job_id, seq, state in found}
    return {job_id: known.get(job_id) or DeliveryCursor() for job_id in job_ids}


def jobs_behind(connection: Connection, sink: str, kind: RowKind, limit: int) -> list[int]:
    """Return at most `limit` jobs that are due and have rows after the cursor, least recently delivered first."""
    behind = text(
        f"{_UNSETTLED_JOBS} AND {ROWS[kind].last_seq} > coalesce(confirmed_seq, 0) "
        "AND coalesce(next_attempt_at <= now(), true) ORDER BY moved_at NULLS FIRST, id LIMIT :limit"
    )
    wanted = {"sink": sink, "unsettled": unsettled(connection, sink), "limit": limit}
    return list(connection.execute(behind, wanted).scalars())


def unsettled(connection: Connection, sink: str) -> list[str]:
    """Return the distinct values of `training_jobs.settled` that do not contain the sink.

    Queries receive them as a parameter instead of a subquery: only then the planner estimates how few jobs match.
    """
    return list(connection.execute(_UNSETTLED, {"sink": sink}).scalars())


def confirm(connection: Connection, sink: str, kind: RowKind, delivered: Mapping[int, Delivered]) -> None:
    """Move the cursors of jobs to the rows that the sink confirmed, and insert dead letters for refused rows.

    Also clears the jobs' earlier failures.
    """
    _dead_letter(connection, sink, kind, delivered)
    moves = {
        "sink": sink,
        "jobs": list(delivered),
        "seqs": [done.confirmed_seq for done in delivered.values()],
        "states": [msgspec.json.encode(done.state).decode() for done in delivered.values()],
        "dead": [len({refusal.seq for refusal in done.refused}) for done in delivered.values()],
    }
    connection.execute(_MOVE, moves)


def failed_attempts(connection: Connection, sink: str, job_ids: Sequence[int]) -> dict[int, int]:
    """Return, by job, the number of consecutive failed deliveries; jobs without a failure are omitted."""
    failed = text(
        "SELECT job_id, attempts FROM delivery_cursors "
        "WHERE sink = :sink AND job_id = ANY(:job_ids) AND attempts > 0"
    )
    return {row.job_id: row.attempts for row in connection.execute(failed, {"sink": sink, "job_ids": job_ids})}


def note_failure(
    connection: Connection, sink: str, job_id: int, error: str, retry_in_s: float | None = None
) -> None:
    """Record that a delivery of a job to a sink failed.

    The job is due again after `retry_in_s` seconds, or at once if that is None.
    """
    connection.execute(
        text(
            "INSERT INTO delivery_cursors (sink, job_id, attempts, last_error, next_attempt_at) "
            "VALUES (:sink, :job_id, 1, :error, now() + make_interval(secs => :retry_in_s)) "
            "ON CONFLICT (sink, job_id) DO UPDATE SET attempts = delivery_cursors.attempts + 1, "
            "last_error = excluded.last_error, next_attempt_at = excluded.next_attempt_at"
        ),
        {"sink": sink, "job_id": job_id, "error": storable_text(error), "retry_in_s": retry_in_s},
    )


def try_again(connection: Connection, sink: str) -> int:
    """Make all jobs due whose delivery to this sink waits for a retry; return how many were changed."""
    # A locked row is being confirmed, or has just failed again: it needs no update.
    waiting = (
        "SELECT job_id FROM delivery_cursors WHERE sink = :sink AND next_attempt_at > now() FOR UPDATE SKIP LOCKED"
    )
    due = text(
        f"UPDATE delivery_cursors SET next_attempt_at = NULL WHERE sink = :sink AND job_id IN ({waiting})"  # noqa: S608
    )
    return connection.execute(due, {"sink": sink}).rowcount


def move_back(connection: Connection, sink: str, job_id: int, from_seq: int) -> None:
    """Move the cursor of a job back, so that all rows from `from_seq` on are delivered again.

    A cursor that is not after `from_seq` keeps its row. The state of the sink and earlier failures are cleared.
    """
    connection.execute(
        text(
            "UPDATE delivery_cursors SET confirmed_seq = least(confirmed_seq, :seq), state = '{}', "
            "attempts = 0, next_attempt_at = NULL WHERE sink = :sink AND job_id = :job_id"
        ),
        {"sink": sink, "job_id": job_id, "seq": from_seq - 1},
    )
    unsettle = (
        "UPDATE training_jobs SET settled = '', logs_settled = false, metrics_settled = false WHERE id = :job_id"
    )
    connection.execute(text(unsettle), {"job_id": job_id})


def settle(connection: Connection, sink: str, kind: RowKind) -> None:
    """Mark jobs that have all rows delivered and sent no message for `QUIET_S` seconds; `jobs_behind` skips them.

    At most `SETTLED_AT_ONCE` jobs are marked. A job is not marked if, after it was selected, it received a new row
    or its cursor was moved back.
    """
    is_done = (
        f"{ROWS[kind].last_seq} <= coalesce(confirmed_seq, 0) "
        "AND last_seen_at < now() - make_interval(secs => :quiet_s)"
    )
    done = f"{_UNSETTLED_JOBS} AND {is_done}"
    wanted = {"sink": sink, "unsettled": unsettled(connection, sink), "quiet_s": QUIET_S, "limit": SETTLED_AT_ONCE}
    found = connection.execute(text(f"{done} LIMIT :limit"), wanted).scalars().all()
    # Selected again under the lease, which `move_back` requires; a drain holds the row lock of a skipped job.
    leased = lease_jobs(connection, sink, found) if found else []
    if leased:
        still_done = f"{done} AND id = ANY(:ids) ORDER BY id FOR UPDATE OF training_jobs SKIP LOCKED"
        mark = text(f"UPDATE training_jobs SET settled = {_WITH_SINK} WHERE id IN ({still_done})")  # noqa: S608
        connection.execute(mark, wanted | {"ids": leased})


def sink_state(connection: Connection, sink: str) -> SinkState:
    """Return the recorded state of the sink; a sink without a record is reachable."""
    found = connection.execute(
        text(
            "SELECT attempts, next_probe_at, coalesce(next_probe_at <= now(), true) FROM sink_states "
            "WHERE sink = :sink"
        ),
        {"sink": sink},
    ).one_or_none()
    return SinkState(0, None, True) if found is None else SinkState(*found)


def claim_probe(connection: Connection, sink: str, for_s: float) -> bool:
    """Reserve the probe that is due for this worker, for `for_s` seconds; return False if none is due."""
    claimed = connection.execute(
        text(
            "UPDATE sink_states SET next_probe_at = now() + make_interval(secs => :for_s) "
            "WHERE sink = :sink AND next_probe_at <= now() RETURNING 1"
        ),
        {"sink": sink, "for_s": for_s},
    )
    return claimed.first() is not None


def mark_down(connection: Connection, sink: str, error: str, retry_in_s: float) -> None:
    """Record that the sink is not reachable; the next probe is due after `retry_in_s` seconds."""
    connection.execute(
        text(
            "INSERT INTO sink_states (sink, attempts, down_since, next_probe_at, last_error) "
            "VALUES (:sink, 1, now(), now() + make_interval(secs => :retry_in_s), :error) "
            "ON CONFLICT (sink) DO UPDATE SET attempts = sink_states.attempts + 1, "
            "down_since = coalesce(sink_states.down_since, now()), next_probe_at = excluded.next_probe_at, "
            "last_error = excluded.last_error"
        ),
        {"sink": sink, "error": storable_text(error), "retry_in_s": retry_in_s},
    )


def mark_up(connection: Connection, sink: str) -> None:
    """Record that the sink is reachable, and make all jobs due that wait for a retry."""
    try_again(connection, sink)
    connection.execute(
        text(
            "UPDATE sink_states SET attempts = 0, down_since = NULL, next_probe_at = NULL, last_error = NULL "
            "WHERE sink = :sink"
        ),
        {"sink": sink},
    )


def _dead_letter(connection: Connection, sink: str, kind: RowKind, delivered: Mapping[int, Delivered]) -> None:
    letters = []
    for job_id, refusal in ((job_id, refusal) for job_id, done in delivered.items() for refusal in done.refused):
        raw = msgspec.msgpack.encode({"sink": sink, "job": job_id, "seq": refusal.seq})
        letters.append(
            {
                "stream": f"sink:{sink}",
                "entry_id": f"{job_id}-{refusal.seq}",
                "kind": kind,
                "job_id": job_id,
                "source": refusal.source,
                "seq": refusal.seq,
                "reason": refusal.reason,
                "detail": storable_text(refusal.detail),
                "raw": raw,
                "raw_sha256": hashlib.sha256(raw).digest(),
            }
        )
    if letters:
        insert_dead_letters(connection, letters)


_MOVE: Final = text(
    "INSERT INTO delivery_cursors (sink, job_id, confirmed_seq, state, dead_lettered, moved_at) "
    "SELECT :sink, job_id, seq, state, dead, now() FROM unnest(CAST(:jobs AS bigint[]), "
    "CAST(:seqs AS bigint[]), CAST(:states AS jsonb[]), CAST(:dead AS bigint[])) "
    "AS moved(job_id, seq, state, dead) "
    "ON CONFLICT (sink, job_id) DO UPDATE SET confirmed_seq = excluded.confirmed_seq, "
    "state = excluded.state, moved_at = now(), attempts = 0, last_error = NULL, next_attempt_at = NULL, "
    "dead_lettered = delivery_cursors.dead_lettered + excluded.dead_lettered"
)
# Reads the index once per value, however many jobs have it.
_UNSETTLED_JOBS: Final = (
    "SELECT id FROM training_jobs LEFT JOIN delivery_cursors ON sink = :sink AND job_id = id "
    "WHERE settled = ANY(:unsettled)"
)
_UNSETTLED: Final = text(
    """
    WITH RECURSIVE found(value) AS (
        (SELECT settled FROM training_jobs ORDER BY settled LIMIT 1)
        UNION ALL
        SELECT (SELECT settled FROM training_jobs WHERE settled > value ORDER BY settled LIMIT 1)
        FROM found WHERE value IS NOT NULL
    )
    SELECT value FROM found WHERE value IS NOT NULL AND :sink <> ALL(string_to_array(value, ','))
    """
)
_WITH_SINK: Final = (
    "array_to_string(ARRAY(SELECT name FROM unnest(string_to_array(settled, ',') || CAST(:sink AS text)) AS name "
    "ORDER BY name), ',')"
)
