"""After a restore of Postgres to an older state, marks acknowledged messages as missing that the state lacks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import redis
from sqlalchemy import Connection, Engine, text

from trainwire.schemas.keys import ACKS_PREFIX, CALLBACK_SOURCE, KINDS, Kind
from trainwire.schemas.wire.validation import MAX_ID
from trainwire.stores.postgres.source_positions import count_numbers
from trainwire.workers.drain import job_rows, positions, store
from trainwire.workers.drain.positions import Position, SourceRow
from trainwire.workers.drain.stream import Ack, ack_commands, redis_errors
from trainwire.workers.redis_commands import execute_all

_SCAN_COUNT = 1000
_WATCH = text(
    "UPDATE training_jobs SET status = 'running', watched_attempt = attempt, last_seen_at = now() "
    "WHERE id = :job AND (status = 'pending' OR (status = 'running' AND :has_ended))"
)
"""Lets the liveness check watch a job that is new or has ended since the backup.

Without heartbeats it then becomes lost.
"""


@dataclass(frozen=True)
class LostMessages:
    """Acknowledged messages of one source and kind that are not in Postgres, as ranges of numbers."""

    job_id: int
    source: str
    kind: Kind
    ranges: tuple[tuple[int, int], ...]

    @property
    def count(self) -> int:
        """The number of messages in the ranges."""
        return count_numbers(self.ranges)


def reconcile(engine: Engine, client: redis.Redis) -> Iterator[LostMessages]:
    """Find messages that are acknowledged in Redis but not in Postgres; mark them as missing, and yield them.

    A running trainer sends missing messages again, or declares them lost. Messages of callbacks, which have no
    spool, are marked as lost. Without a restore nothing is found, because acknowledgements are written after the
    commit. Raises `Unavailable` if Postgres or Redis does not answer.
    """
    for job_id, acked in _acknowledged(client):
        with store.postgres_errors(), engine.begin() as connection:
            gone, acks = _missing(connection, job_id, acked)
        if not gone:
            continue
        with redis_errors():
            execute_all(client, [*ack_commands(acks)])
        yield from gone


def _acknowledged(client: redis.Redis) -> Iterator[tuple[int, dict[tuple[str, Kind], int]]]:
    """Yield (job, highest acknowledged message number by source and kind) for all jobs in Redis."""
    with redis_errors():
        for key in client.scan_iter(f"{ACKS_PREFIX}*", count=_SCAN_COUNT):
            job = key.decode().removeprefix(ACKS_PREFIX)
            if job.isdigit() and 0 < int(job) <= MAX_ID:
                yield int(job), _numbers(client.hgetall(key))  # type: ignore[arg-type]


def _numbers(fields: dict[bytes, bytes]) -> dict[tuple[str, Kind], int]:
    found: dict[tuple[str, Kind], int] = {}
    for name, value in fields.items():
        source, _, kind = name.decode(errors="replace").rpartition(":")
        if kind in KINDS and value.isdigit() and 0 < int(value) <= MAX_ID:
            found[source, kind] = int(value)
    return found


def _missing(
    connection: Connection, job_id: int, acked: dict[tuple[str, Kind], int]
) -> tuple[list[LostMessages], list[Ack]]:
    """Mark messages as missing that `acked` contains and Postgres does not.

    Returns them, and the corrected acknowledgements to write to Redis.
    """
    sources = [(job_id, source) for source, _ in acked]
    known = positions.load_positions(connection, sources)
    if not any(_of(known, job_id, *key).position.contiguous < last for key, last in acked.items()):
        return [], []
    job = job_rows.lock_jobs(connection, [job_id]).get(job_id)
    if job is None:  # it was deleted
        return [], []
    known = positions.load_positions(connection, sources)
    attempts = {source: row.attempt for (_, source, _), row in known.items()}
    gone, changed = [], {}
    for (source, kind), last in acked.items():
        row = _of(known, job_id, source, kind)
        row.attempt = row.attempt or attempts.get(source, job.attempt)
        if missing := row.position.expect(last):
            gone.append(LostMessages(job_id, source, kind, tuple(missing)))
            changed[job_id, source, kind] = row
            for first, end in missing if source.startswith(CALLBACK_SOURCE) else ():
                row.position.lose(first, end, "restored")
    positions.save_positions(connection, changed)
    connection.execute(_WATCH, {"job": job_id, "has_ended": any(each.kind == "completions" for each in gone)})
    return gone, [(*key, row.position) for key, row in changed.items()]


def _of(known: dict[positions.SourceKey, SourceRow], job_id: int, source: str, kind: Kind) -> SourceRow:
    return known.get((job_id, source, kind)) or SourceRow(0, Position())
