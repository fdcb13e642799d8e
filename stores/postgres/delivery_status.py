"""Deliveries in words."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from trainwire.schemas.sinks import SINKS
from trainwire.stores.postgres.deliveries import DeliveryTotals, JobDelivery, SinkHealth

MINUTE_S = 60
HOUR_S = 60 * MINUTE_S
DAY_S = 24 * HOUR_S

Clock = Callable[[datetime], str]
"""Shows a time in the zone of who reads it."""


def shown_health(health: SinkHealth, clock: Clock) -> str:
    """Say whether a sink answers, since when it does not, and when it is tried again."""
    if health.answers is None:
        return "nothing has been sent to it yet"
    return "answers" if health.answers else f"{_outage(health, clock)} ({counted(health.attempts, 'attempt')})"


def shown_totals(totals: DeliveryTotals) -> str:
    """Say how much of all jobs is delivered, in one line."""
    dead = f", {totals.dead_lettered:,} of them dead-lettered" if totals.dead_lettered else ""
    return (
        f"{counted(totals.jobs_delivered, 'job')} fully delivered: {counted(totals.rows_delivered, 'row')}{dead}"
    )


def shown_delivery(job: JobDelivery, health: SinkHealth, clock: Clock) -> str:
    """Return in one line how far a sink is with one job, why not further, and the sink's note."""
    shown = _shown_progress(job, health, clock)
    return shown if job.note is None else f"{shown}; {job.note}"


def _shown_progress(job: JobDelivery, health: SinkHealth, clock: Clock) -> str:
    if job.own_run_id is not None:
        return f"nothing mirrored: the trainer logs to run {job.own_run_id} itself"
    thing = SINKS[health.sink].rows.item
    dead = f", {job.dead_lettered:,} of them dead-lettered" if job.dead_lettered else ""
    behind = f"{counted(job.rows_behind, thing)} behind"
    if job.next_attempt_at is not None:
        return f"{behind}; {shown_error(job, clock)}"
    if not job.rows_behind:
        return f"all {job.last_seq:,} {thing}s delivered{dead}"
    if health.answers is False:
        return f"{behind}; {_outage(health, clock)}"
    return f"{behind}; last error: {job.last_error}" if job.last_error else behind


def shown_error(job: JobDelivery, clock: Clock) -> str | None:
    """Return the job's last error, and when a job that waits for its next attempt has it."""
    if job.next_attempt_at is None:
        return job.last_error
    return f"{job.last_error}, next attempt {clock(job.next_attempt_at)}"


def shown_age(seconds: float | None) -> str:
    """Return an age as people say it, from the largest unit that is not zero."""
    if seconds is None:
        return ""
    whole = int(seconds)
    for unit_s, name, below_s, below in ((DAY_S, "d", HOUR_S, "h"), (HOUR_S, "h", MINUTE_S, "min")):
        if whole >= unit_s:
            return f"{whole // unit_s} {name} {whole % unit_s // below_s} {below}"
    return f"{whole // MINUTE_S} min {whole % MINUTE_S} s" if whole >= MINUTE_S else f"{seconds:.1f} s"


def counted(number: int, thing: str) -> str:
    """Return a number of things: `1 row`, `1,234 rows`."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def _outage(health: SinkHealth, clock: Clock) -> str:
    since = f", since {clock(health.down_since)}" if health.down_since else ""
    at = health.next_attempt_at
    then = "now" if at is None or at <= datetime.now(UTC) else clock(at)
    return f"{health.last_error or 'does not answer'}{since}, next attempt {then}"
