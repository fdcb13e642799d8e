"""Deliveries in words, for `trainwire deliveries` and `trainwire status`."""

from __future__ import annotations

from datetime import UTC, datetime

from trainwire.deliveries import SINKS, DeliveryTotals, JobDelivery, SinkHealth
from trainwire.terminal import local

MINUTE_S = 60
HOUR_S = 60 * MINUTE_S
DAY_S = 24 * HOUR_S


def shown_health(health: SinkHealth) -> str:
    """Say whether a sink answers, since when it does not, and when it is tried again."""
    if health.answers is None:
        return "nothing has been sent to it yet"
    return "answers" if health.answers else f"{_outage(health)} ({counted(health.attempts, 'attempt')})"


def shown_totals(totals: DeliveryTotals) -> str:
    """Say how much of all jobs is delivered, in one line."""
    dead = f", {totals.dead_lettered:,} of them dead-lettered" if totals.dead_lettered else ""
    return (
        f"{counted(totals.jobs_delivered, 'job')} fully delivered: {counted(totals.rows_delivered, 'row')}{dead}"
    )


def shown_delivery(job: JobDelivery, health: SinkHealth) -> str:
    """Say in one line what a sink has of one job, and why not all."""
    thing = SINKS[health.sink].thing
    dead = f", {job.dead_lettered:,} of them dead-lettered" if job.dead_lettered else ""
    if not job.rows_behind:
        return f"all {job.last_seq:,} {thing}s delivered{dead}"
    behind = f"{counted(job.rows_behind, thing)} behind"
    if health.answers is False:
        return f"{behind}; {_outage(health)}"
    return f"{behind}; last error: {job.last_error}" if job.last_error else behind


def shown_age(seconds: float | None) -> str:
    """Return an age as people say it, from the largest unit that is not zero."""
    if seconds is None:
        return ""
    whole = int(seconds)
    for unit_s, name, below_s, below in ((DAY_S, "d", HOUR_S, "h"), (HOUR_S, "h", MINUTE_S, "min")):
        if whole >= unit_s:
            return f"{whole // unit_s} {name} {whole % unit_s // below_s} {below}"
    return f"{whole // MINUTE_S} min {whole % MINUTE_S} s" if whole >= MINUTE_S else f"{seconds:.1f} s"


def shown_clock(at: datetime) -> str:
    """Return the local time of day, with the date where that is not today."""
    here = local(at)
    is_today = here.date() == local(datetime.now(UTC)).date()
    return f"{here:%H:%M:%S}" if is_today else f"{here:%Y-%m-%d %H:%M}"


def counted(number: int, thing: str) -> str:
    """Return a number of things: `1 row`, `1,234 rows`."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def _outage(health: SinkHealth) -> str:
    since = f", since {shown_clock(health.down_since)}" if health.down_since else ""
    return f"{health.last_error or 'does not answer'}{since}, next attempt {_next(health.next_attempt_at)}"


def _next(at: datetime | None) -> str:
    return "now" if at is None or at <= datetime.now(UTC) else shown_clock(at)
