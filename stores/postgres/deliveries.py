"""How far the sinks are with what Postgres has."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec
from sqlalchemy import Connection, TextClause, text

from trainwire.schemas.sinks import SINKS


class SinkHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a sink answers, as far as the workers know; None: nothing has been sent to it yet."""

    sink: str
    answers: bool | None
    down_since: datetime | None = None
    next_attempt_at: datetime | None = None
    attempts: int = 0
    last_error: str | None = None


class JobDelivery(msgspec.Struct, frozen=True, kw_only=True):
    """How far a sink has confirmed one job; `oldest_age_s` is the age of the oldest row it does not have.

    With `next_attempt_at` it may be the job that makes the sink fail: it waits until then, others do not. With
    `own_run_id` the trainer logs to that run itself: its rows are passed over, not delivered. `note` is
    something about its copies that the sink has stored for operators.
    """

    job_id: int
    rows_behind: int
    oldest_age_s: float | None
    confirmed_seq: int
    last_seq: int
    attempts: int
    last_error: str | None
    dead_lettered: int
    next_attempt_at: datetime | None = None
    own_run_id: str | None = None
    note: str | None = None


class DeliveryTotals(msgspec.Struct, frozen=True, kw_only=True):
    """All jobs of a sink in numbers; `dead_lettered` is of the jobs that are fully delivered."""

    jobs_behind: int
    rows_behind: int
    jobs_delivered: int
    rows_delivered: int
    dead_lettered: int


class SinkReport(msgspec.Struct, frozen=True, kw_only=True):
    """One sink as a whole, with the jobs that are behind."""

    health: SinkHealth
    totals: DeliveryTotals
    jobs: list[JobDelivery]


def was_used(connection: Connection, sink: str) -> bool:
    """Tell whether anything was ever delivered to the sink, or tried."""
    return bool(connection.execute(_USED, {"sink": sink}).scalar_one())


def sink_report(connection: Connection, sink: str, limit: int) -> SinkReport:
    """Return how a sink is, with at most `limit` jobs."""
    return SinkReport(
        health=sink_health(connection, sink),
        totals=delivery_totals(connection, sink),
        jobs=jobs_behind(connection, sink, limit),
    )


def sink_health(connection: Connection, sink: str) -> SinkHealth:
    """Return whether the sink answers: only its failures are kept, so a confirmed row is the proof."""
    row = connection.execute(_HEALTH, {"sink": sink}).mappings().one()
    if row["down_since"] is None:
        return SinkHealth(sink=sink, answers=True if row["known"] or row["confirmed"] else None)
    return SinkHealth(
        sink=sink,
        answers=False,
        down_since=row["down_since"],
        next_attempt_at=row["next_probe_at"],
        attempts=row["attempts"],
        last_error=row["last_error"],
    )


def jobs_behind(connection: Connection, sink: str, limit: int) -> list[JobDelivery]:
    """Return the jobs that have rows the sink does not have, or that it fails, the longest waiting first."""
    found = connection.execute(_behind(sink), {"sink": sink, "limit": limit}).mappings()
    return [JobDelivery(**row) for row in found]


def job_deliveries(connection: Connection, job_id: int) -> dict[str, tuple[JobDelivery, SinkHealth]]:
    """Return how far each sink is with a job that is there; no sink that was never tried, none without rows."""
    found = {}
    for sink in SINKS:
        names = {"sink": sink, "job_id": job_id}
        if connection.execute(_TRIED, names).scalar_one():
            delivery = JobDelivery(**connection.execute(_of_job(sink), names).mappings().one())
            found[sink] = (delivery, sink_health(connection, sink))
    return {sink: pair for sink, pair in found.items() if pair[0].last_seq}


def delivery_totals(connection: Connection, sink: str) -> DeliveryTotals:
    """Add up all jobs of a sink."""
    return DeliveryTotals(**connection.execute(_totals(sink), {"sink": sink}).mappings().one())


_HEALTH: Final = text(
    "SELECT known.sink IS NOT NULL AS known, down_since, next_probe_at, coalesce(attempts, 0) AS attempts, "
    "last_error, EXISTS (SELECT FROM delivery_cursors WHERE sink = :sink AND moved_at IS NOT NULL) AS confirmed "
    "FROM (VALUES (1)) AS one LEFT JOIN sink_states AS known ON known.sink = :sink"
)
_TRIED: Final = text(
    "SELECT EXISTS (SELECT FROM delivery_cursors WHERE sink = :sink AND job_id = :job_id) "
    "OR EXISTS (SELECT FROM sink_states WHERE sink = :sink)"
)
_USED: Final = text(
    "SELECT EXISTS (SELECT FROM delivery_cursors WHERE sink = :sink) "
    "OR EXISTS (SELECT FROM sink_states WHERE sink = :sink)"
)


def _behind(sink: str) -> TextClause:
    return text(
        f"{_delivery(sink)} WHERE {SINKS[sink].rows.last_seq} > coalesce(confirmed_seq, 0) "
        "OR next_attempt_at > now() ORDER BY oldest.created_at NULLS LAST, id LIMIT :limit"
    )


def _of_job(sink: str) -> TextClause:
    return text(f"{_delivery(sink)} WHERE id = :job_id")


def _delivery(sink: str) -> str:
    rows = SINKS[sink].rows
    return (
        f"SELECT id AS job_id, greatest({rows.last_seq} - coalesce(confirmed_seq, 0), 0) AS rows_behind, "  # noqa: S608 - our own columns
        "CAST(greatest(extract(epoch FROM now() - oldest.created_at), 0) AS double precision) AS oldest_age_s, "
        f"coalesce(confirmed_seq, 0) AS confirmed_seq, {rows.last_seq} AS last_seq, "
        "coalesce(attempts, 0) AS attempts, last_error, coalesce(dead_lettered, 0) AS dead_lettered, "
        "CASE WHEN next_attempt_at > now() THEN next_attempt_at END AS next_attempt_at, "
        f"{SINKS[sink].own_run_id} AS own_run_id, state ->> 'note' AS note FROM training_jobs "
        "LEFT JOIN delivery_cursors ON sink = :sink AND job_id = id "
        f"LEFT JOIN LATERAL (SELECT created_at FROM {rows.table} AS waiting WHERE waiting.job_id = id "
        "AND seq > coalesce(confirmed_seq, 0) ORDER BY seq LIMIT 1) AS oldest ON true "
    )


def _totals(sink: str) -> TextClause:
    last_seq = SINKS[sink].rows.last_seq
    return text(
        "SELECT count(*) FILTER (WHERE behind > 0) AS jobs_behind, "  # noqa: S608 - our own column
        "CAST(coalesce(sum(behind) FILTER (WHERE behind > 0), 0) AS bigint) AS rows_behind, "
        "count(*) FILTER (WHERE behind <= 0) AS jobs_delivered, "
        "CAST(coalesce(sum(last_seq) FILTER (WHERE behind <= 0), 0) AS bigint) AS rows_delivered, "
        "CAST(coalesce(sum(dead) FILTER (WHERE behind <= 0), 0) AS bigint) AS dead_lettered "
        f"FROM (SELECT {last_seq} AS last_seq, {last_seq} - coalesce(confirmed_seq, 0) AS behind, "
        "coalesce(dead_lettered, 0) AS dead FROM training_jobs "
        f"LEFT JOIN delivery_cursors ON sink = :sink AND job_id = id WHERE {last_seq} > 0) AS jobs"
    )
