"""Reads the progress of deliveries to sinks from Postgres, and formats it as text."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import msgspec
from sqlalchemy import Connection, TextClause, text

from trainwire.schemas.sinks import SINKS


class SinkHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a sink responds, as recorded by workers.

    `answers` is None if nothing has been sent to the sink yet.
    """

    sink: str
    answers: bool | None
    down_since: datetime | None = None
    next_attempt_at: datetime | None = None
    attempts: int = 0
    last_error: str | None = None


class JobDelivery(msgspec.Struct, frozen=True, kw_only=True):
    """The delivery of one job to one sink; `oldest_age_s` is the age of the oldest unconfirmed row.

    `next_attempt_at` is set if only this job's deliveries fail, probably because of its data. `own_run_id` is the
    MLflow run to which the trainer itself logs; if it is set, no rows are delivered. `note` is a remark of the
    sink about its copies of the job.
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
    """Totals over all jobs with rows for a sink: jobs with undelivered rows, and jobs that are fully delivered.

    `dead_lettered` is counted only for jobs that are fully delivered.
    """

    jobs_behind: int
    rows_behind: int
    jobs_delivered: int
    rows_delivered: int
    dead_lettered: int


class SinkReport(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one sink: whether it responds, its totals, and the jobs with undelivered rows."""

    health: SinkHealth
    totals: DeliveryTotals
    jobs: list[JobDelivery]


def was_used(connection: Connection, sink: str) -> bool:
    """Return whether Postgres has a delivery cursor or a state of the sink, so that a delivery was attempted."""
    return bool(connection.execute(_USED, {"sink": sink}).scalar_one())


def sink_report(connection: Connection, sink: str, limit: int) -> SinkReport:
    """Return the state of a sink with at most `limit` of the jobs that have undelivered rows."""
    return SinkReport(
        health=sink_health(connection, sink),
        totals=delivery_totals(connection, sink),
        jobs=jobs_behind(connection, sink, limit),
    )


def sink_health(connection: Connection, sink: str) -> SinkHealth:
    """Return the health of a sink as recorded by workers.

    Workers record only outages; without a recorded outage, a confirmed row proves that the sink has responded.
    """
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
    """Return at most `limit` jobs with undelivered rows or a pending retry, the one with the oldest row first."""
    found = connection.execute(_behind(sink), {"sink": sink, "limit": limit}).mappings()
    return [JobDelivery(**row) for row in found]


def job_deliveries(connection: Connection, job_id: int) -> dict[str, tuple[JobDelivery, SinkHealth]]:
    """Return sink -> (delivery of the job, health of the sink).

    Sinks that were never used, or for which the job has no rows, are left out. The job must exist.
    """
    found = {}
    for sink in SINKS:
        names = {"sink": sink, "job_id": job_id}
        if connection.execute(_USED_BY_JOB, names).scalar_one():
            delivery = JobDelivery(**connection.execute(_of_job(sink), names).mappings().one())
            found[sink] = (delivery, sink_health(connection, sink))
    return {sink: pair for sink, pair in found.items() if pair[0].last_seq}


def delivery_totals(connection: Connection, sink: str) -> DeliveryTotals:
    """Return the totals over all jobs of a sink."""
    return DeliveryTotals(**connection.execute(_totals(sink), {"sink": sink}).mappings().one())


_HEALTH: Final = text(
    "SELECT known.sink IS NOT NULL AS known, down_since, next_probe_at, coalesce(attempts, 0) AS attempts, "
    "last_error, EXISTS (SELECT FROM delivery_cursors WHERE sink = :sink AND moved_at IS NOT NULL) AS confirmed "
    "FROM (VALUES (1)) AS one LEFT JOIN sink_states AS known ON known.sink = :sink"
)
_USED_BY_JOB: Final = text(
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


MINUTE_S = 60
HOUR_S = 60 * MINUTE_S
DAY_S = 24 * HOUR_S

Clock = Callable[[datetime], str]
"""A function that formats a time in the reader's time zone."""


def shown_health(health: SinkHealth, clock: Clock) -> str:
    """Format as text whether a sink responds; during an outage, with the time of the next attempt to deliver."""
    if health.answers is None:
        return "nothing has been sent to it yet"
    return "answers" if health.answers else f"{_outage(health, clock)} ({counted(health.attempts, 'attempt')})"


def shown_totals(totals: DeliveryTotals) -> str:
    """Format the numbers of fully delivered jobs and of their rows as one line."""
    dead = f", {totals.dead_lettered:,} of them dead-lettered" if totals.dead_lettered else ""
    return (
        f"{counted(totals.jobs_delivered, 'job')} fully delivered: {counted(totals.rows_delivered, 'row')}{dead}"
    )


def shown_delivery(job: JobDelivery, health: SinkHealth, clock: Clock) -> str:
    """Format the delivery of one job as one line, with the reason for undelivered rows and the sink's note."""
    shown = _shown_progress(job, health, clock)
    return shown if job.note is None else f"{shown}; {job.note}"


def _shown_progress(job: JobDelivery, health: SinkHealth, clock: Clock) -> str:
    if job.own_run_id is not None:
        return f"nothing mirrored: the trainer logs to run {job.own_run_id} itself"
    noun = SINKS[health.sink].rows.item
    dead = f", {job.dead_lettered:,} of them dead-lettered" if job.dead_lettered else ""
    behind = f"{counted(job.rows_behind, noun)} behind"
    if job.next_attempt_at is not None:
        return f"{behind}; {shown_error(job, clock)}"
    if not job.rows_behind:
        return f"all {job.last_seq:,} {noun}s delivered{dead}"
    if health.answers is False:
        return f"{behind}; {_outage(health, clock)}"
    return f"{behind}; last error: {job.last_error}" if job.last_error else behind


def shown_error(job: JobDelivery, clock: Clock) -> str | None:
    """Format the job's last error, with the time of the next attempt if there is one; None without an error."""
    if job.next_attempt_at is None:
        return job.last_error
    return f"{job.last_error}, next attempt {clock(job.next_attempt_at)}"


def shown_age(seconds: float | None) -> str:
    """Format seconds as text in the two largest units, such as `2 h 5 min`; return an empty text for None."""
    if seconds is None:
        return ""
    whole = int(seconds)
    for unit_s, name, below_s, below in ((DAY_S, "d", HOUR_S, "h"), (HOUR_S, "h", MINUTE_S, "min")):
        if whole >= unit_s:
            return f"{whole // unit_s} {name} {whole % unit_s // below_s} {below}"
    return f"{whole // MINUTE_S} min {whole % MINUTE_S} s" if whole >= MINUTE_S else f"{seconds:.1f} s"


def counted(number: int, noun: str) -> str:
    """Format a number with its noun in singular or plural, such as `1 row` or `1,234 rows`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _outage(health: SinkHealth, clock: Clock) -> str:
    since = f", since {clock(health.down_since)}" if health.down_since else ""
    at = health.next_attempt_at
    then = "now" if at is None or at <= datetime.now(UTC) else clock(at)
    return f"{health.last_error or 'does not answer'}{since}, next attempt {then}"
