"""Publishes requests to stop in Redis, where trainers and gateways read them (docs/stop.md)."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

import redis
import structlog
from sqlalchemy import Connection, Engine, text

from trainwire.schemas.events import Event, TrainingStatus
from trainwire.schemas.keys import acks_key, stop_field
from trainwire.schemas.wire.stop_requests import StopRequest, encode_stop
from trainwire.workers.drain import store
from trainwire.workers.drain.stream import ACKS_TTL_S, redis_errors

log = structlog.get_logger("trainwire.workers.liveness.stop_publisher")

OPEN_DAYS: Final = 7
"""Days after the end of an attempt for which its other processes are still asked to stop."""


def publish_stops(engine: Engine, client: redis.Redis) -> list[Event]:
    """Write all open requests to Redis, for each process of their attempts; return the events of new requests.

    Requests that no process of their attempt needs any more are closed first. The others are written again each
    time: Redis may have lost them, and processes may have joined. Raises `Unavailable` if Postgres or Redis does
    not answer.
    """
    with store.postgres_errors(), engine.begin() as connection:
        if not connection.execute(_HAS_OPEN).scalar_one():
            return []
        connection.execute(_CLOSE, {"days": OPEN_DAYS})
        fields = _fields(connection)
    pipeline = client.pipeline(transaction=False)
    for job_id, values in fields.items():
        pipeline.hset(acks_key(job_id), mapping=values)
        pipeline.expire(acks_key(job_id), ACKS_TTL_S)
    with redis_errors():
        pipeline.execute()
    return _new(engine, list(fields))


def _fields(connection: Connection) -> dict[int, dict[Any, Any]]:
    """Return, by job, the fields of its Redis hash: one for each process that has not reported its end."""
    fields: dict[int, dict[Any, Any]] = defaultdict(dict)
    for row in connection.execute(_SOURCES):
        request = StopRequest(by=row.requested_by, reason=row.reason)
        fields[row.job_id][stop_field(row.source)] = encode_stop(request)
    return fields


def _new(engine: Engine, job_ids: list[int]) -> list[Event]:
    with store.postgres_errors(), engine.begin() as connection:
        rows = connection.execute(_NOTE_PUBLISHED, {"jobs": job_ids}).all()
    for row in rows:
        log.info("job.stop_published", job_id=row.job_id, attempt=row.attempt, by=row.requested_by)
    return [
        TrainingStatus(
            job_id=row.job_id,
            attempt=row.attempt,
            status=row.status,
            previous_status=row.status,
            reason=row.status_reason,
        )
        for row in rows
    ]


_HAS_OPEN: Final = text("SELECT EXISTS (SELECT FROM stop_requests WHERE closed_at IS NULL)")
_UNENDED: Final = (
    "FROM source_positions AS position WHERE position.job_id = asked.job_id AND position.attempt = asked.attempt "
    "AND NOT EXISTS (SELECT FROM source_positions AS ended WHERE ended.job_id = asked.job_id "
    "AND ended.source = position.source AND ended.kind = 'completions' AND ended.last_seq > 0)"
)
"""The processes of an attempt without a completion; a killed one never has one."""
_CLOSE: Final = text(
    f"""
    UPDATE stop_requests AS asked SET closed_at = now() FROM training_jobs AS job
    WHERE asked.closed_at IS NULL AND job.id = asked.job_id AND (
        job.attempt > asked.attempt
        OR (job.completed_at IS NOT NULL AND (
            job.last_seen_at < now() - make_interval(days => :days) OR NOT EXISTS (SELECT {_UNENDED})
        ))
    )
    """  # noqa: S608 - our own condition
)
_SOURCES: Final = text(
    "SELECT asked.job_id, requested_by, reason, source FROM stop_requests AS asked "  # noqa: S608 - as above
    f"CROSS JOIN LATERAL (SELECT DISTINCT source {_UNENDED}) AS unended WHERE asked.closed_at IS NULL"
)
_NOTE_PUBLISHED: Final = text(
    "UPDATE stop_requests AS asked SET published_at = now() FROM training_jobs AS job "
    "WHERE asked.job_id = ANY(CAST(:jobs AS bigint[])) AND asked.closed_at IS NULL AND published_at IS NULL "
    "AND job.id = asked.job_id AND job.attempt = asked.attempt "
    "RETURNING asked.job_id, asked.attempt, requested_by, job.status, job.status_reason"
)
