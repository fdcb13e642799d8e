"""The Postgres side of deliveries: cursors, rows, whether a sink answers, and what it refused."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import msgspec
from sqlalchemy import Connection, text
from sqlalchemy.dialects.postgresql import insert

from schemas.tables import dead_letters
from workers.decoding import visible
from workers.sinks.base import Delivered, LogRow, RefusedRow

_LEASE: Final = "hashtextextended(:sink || ':' || id, 0)"
"""The number of the advisory lock that is the lease on a sink and a job."""


@dataclass(slots=True)
class DeliveryCursor:
    """How far a sink has confirmed a job."""

    confirmed_seq: int = 0
    newest_ns: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SinkState:
    """Whether a sink answers; `is_due` tells whether the next probe's time has come."""

    attempts: int
    next_probe_at: datetime | None
    is_due: bool


def lease_jobs(connection: Connection, sink: str, job_ids: Collection[int]) -> list[int]:
    """Return those of the jobs that nobody else delivers now; they are ours until this transaction ends.

    Advisory locks, not row locks: the cursors are written in other transactions while these are held.
    """
    ids = "unnest(CAST(:ids AS bigint[])) AS id"
    leased = text(f"SELECT id FROM {ids} WHERE pg_try_advisory_xact_lock({_LEASE}) ORDER BY id")  # noqa: S608
    return list(connection.execute(leased, {"ids": sorted(job_ids), "sink": sink}).scalars())


def await_lease(connection: Connection, sink: str, job_id: int) -> None:
    """Wait, up to the session's lock_timeout, until nobody delivers this job; then it is ours."""
    job = "(SELECT CAST(:job_id AS bigint) AS id) AS job"
    waiting = text(f"SELECT pg_advisory_xact_lock({_LEASE}) FROM {job}")  # noqa: S608
    connection.execute(waiting, {"sink": sink, "job_id": job_id})


def read_cursors(connection: Connection, sink: str, job_ids: Sequence[int]) -> dict[int, DeliveryCursor]:
    """Return the cursors of these jobs, new ones where there are none."""
    found = connection.execute(
        text(
            "SELECT job_id, confirmed_seq, newest_ns FROM delivery_cursors "
            "WHERE sink = :sink AND job_id = ANY(:job_ids)"
        ),
        {"sink": sink, "job_ids": list(job_ids)},
    )
    known = {job_id: DeliveryCursor(seq, newest_ns) for job_id, seq, newest_ns in found}
    return {job_id: known.get(job_id) or DeliveryCursor() for job_id in job_ids}


def read_rows(
    connection: Connection, after: Mapping[int, int], most_rows: int, most_bytes: int
) -> dict[int, list[LogRow]]:
    """Return the next log rows of each job after its seq, at most so many rows and bytes of each, at least one."""
    values = {"jobs": list(after), "after": list(after.values()), "most_rows": most_rows, "most_bytes": most_bytes}
    rows: dict[int, list[LogRow]] = defaultdict(list)
    for job_id, *row in connection.execute(_READ_ROWS, values):
        rows[job_id].append(LogRow(*row))
    return rows


def confirm(connection: Connection, sink: str, job_id: int, delivered: Delivered) -> None:
    """Move a job's cursor to what the sink has proven to have, and bury what it refused."""
    _bury(connection, sink, job_id, delivered.refused)
    connection.execute(
        text(
            "INSERT INTO delivery_cursors (sink, job_id, confirmed_seq, newest_ns, dead_lettered, moved_at) "
            "VALUES (:sink, :job_id, :seq, CAST(:newest AS jsonb), :dead, now()) "
            "ON CONFLICT (sink, job_id) DO UPDATE SET confirmed_seq = excluded.confirmed_seq, "
            "newest_ns = excluded.newest_ns, moved_at = now(), attempts = 0, last_error = NULL, "
            "dead_lettered = delivery_cursors.dead_lettered + excluded.dead_lettered"
        ),
        {
            "sink": sink,
            "job_id": job_id,
            "seq": delivered.confirmed_seq,
            "newest": msgspec.json.encode(delivered.newest_ns).decode(),
            "dead": len({refusal.row.seq for refusal in delivered.refused}),
        },
    )


def note_failure(connection: Connection, sink: str, job_id: int, error: str) -> None:
    """Record a failed attempt; the cursor stays where it is."""
    connection.execute(
        text(
            "INSERT INTO delivery_cursors (sink, job_id, attempts, last_error) VALUES (:sink, :job_id, 1, :error) "
            "ON CONFLICT (sink, job_id) DO UPDATE SET attempts = delivery_cursors.attempts + 1, "
            "last_error = excluded.last_error"
        ),
        {"sink": sink, "job_id": job_id, "error": visible(error)},
    )


def move_back(connection: Connection, sink: str, job_id: int, from_seq: int) -> None:
    """Have everything from `from_seq` on delivered again."""
    connection.execute(
        text(
            "UPDATE delivery_cursors SET confirmed_seq = least(confirmed_seq, :seq), newest_ns = '{}', "
            "attempts = 0 WHERE sink = :sink AND job_id = :job_id"
        ),
        {"sink": sink, "job_id": job_id, "seq": from_seq - 1},
    )


def jobs_behind(connection: Connection, sink: str, limit: int) -> list[int]:
    """Return jobs that have rows after the sink's cursor, those that were moved longest ago first."""
    behind = text(
        "SELECT id FROM training_jobs LEFT JOIN delivery_cursors ON sink = :sink AND job_id = id "
        "WHERE last_log_seq > coalesce(confirmed_seq, 0) ORDER BY moved_at NULLS FIRST, id LIMIT :limit"
    )
    return list(connection.execute(behind, {"sink": sink, "limit": limit}).scalars())


def sink_state(connection: Connection, sink: str) -> SinkState:
    """Return whether the sink answers, as far as is known."""
    found = connection.execute(
        text(
            "SELECT attempts, next_probe_at, coalesce(next_probe_at <= now(), true) FROM sink_states "
            "WHERE sink = :sink"
        ),
        {"sink": sink},
    ).one_or_none()
    return SinkState(0, None, True) if found is None else SinkState(*found)


def claim_probe(connection: Connection, sink: str, for_s: float) -> bool:
    """Take the one probe that is due; False when another worker has it, or its time has not come."""
    claimed = connection.execute(
        text(
            "UPDATE sink_states SET next_probe_at = now() + make_interval(secs => :for_s) "
            "WHERE sink = :sink AND next_probe_at <= now() RETURNING 1"
        ),
        {"sink": sink, "for_s": for_s},
    )
    return claimed.first() is not None


def mark_down(connection: Connection, sink: str, error: str, retry_in_s: float) -> None:
    """Record that the sink does not answer, and when to probe it."""
    connection.execute(
        text(
            "INSERT INTO sink_states (sink, attempts, down_since, next_probe_at, last_error) "
            "VALUES (:sink, 1, now(), now() + make_interval(secs => :retry_in_s), :error) "
            "ON CONFLICT (sink) DO UPDATE SET attempts = sink_states.attempts + 1, "
            "down_since = coalesce(sink_states.down_since, now()), next_probe_at = excluded.next_probe_at, "
            "last_error = excluded.last_error"
        ),
        {"sink": sink, "error": visible(error), "retry_in_s": retry_in_s},
    )


def mark_up(connection: Connection, sink: str) -> None:
    """Record that the sink answers."""
    connection.execute(
        text(
            "UPDATE sink_states SET attempts = 0, down_since = NULL, next_probe_at = NULL, last_error = NULL "
            "WHERE sink = :sink"
        ),
        {"sink": sink},
    )


def _bury(connection: Connection, sink: str, job_id: int, refused: Sequence[RefusedRow]) -> None:
    if not refused:
        return
    letters = []
    for refusal in refused:
        raw = msgspec.msgpack.encode({"sink": sink, "job": job_id, "seq": refusal.row.seq})
        letters.append(
            {
                "stream": f"sink:{sink}",
                "entry_id": f"{job_id}-{refusal.row.seq}",
                "kind": "logs",
                "job_id": job_id,
                "source": refusal.row.source,
                "seq": refusal.row.seq,
                "reason": refusal.reason,
                "detail": visible(refusal.detail),
                "raw": raw,
                "raw_sha256": hashlib.sha256(raw).digest(),
            }
        )
    connection.execute(insert(dead_letters).on_conflict_do_nothing(), letters)


_READ_ROWS: Final = text(
    """
    SELECT wanted.job_id, seq, attempt, rank, source, log_type, level,
        -- A time that 64 bits of nanoseconds do not hold is one that no sink takes.
        CASE WHEN logged_at < '1700-01-01' THEN 0 WHEN logged_at >= '2262-01-01' THEN 9223372036854775807
        ELSE CAST(extract(epoch FROM logged_at) * 1000000 AS bigint) * 1000 + logged_ns END, content
    FROM unnest(CAST(:jobs AS bigint[]), CAST(:after AS bigint[])) AS wanted(job_id, after)
    CROSS JOIN LATERAL (
        SELECT *, sum(octet_length(content)) OVER (ORDER BY seq) - octet_length(content) AS bytes_before
        FROM (
            SELECT * FROM training_logs WHERE job_id = wanted.job_id AND seq > wanted.after
            ORDER BY seq LIMIT :most_rows
        ) AS next_rows
    ) AS next_bytes
    WHERE bytes_before < :most_bytes ORDER BY wanted.job_id, seq
    """
)
