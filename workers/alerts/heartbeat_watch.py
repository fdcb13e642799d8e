"""Evaluates the rules that use heartbeats of running trainers: no progress, and the size of the spool."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, text

from trainwire.schemas.filters.job_filter import parse_filter
from trainwire.schemas.wire.heartbeats import Heartbeat
from trainwire.schemas.wire.messages import ATTEMPT_UNKNOWN
from trainwire.stores.postgres.jobs.job_pages import matching_jobs
from trainwire.workers.alerts.alert_rows import Finding, names_of_jobs, save_alerts
from trainwire.workers.alerts.rules import AlertRules, Rule

CAUSES: Final = ("no_progress", "spool")


def apply_to_heartbeats(connection: Connection, rules: AlertRules, beats: Sequence[Heartbeat]) -> None:
    """Write alerts about running and stalled jobs for the rules that use heartbeats; `beats` are recent ones."""
    by_job: dict[int, list[Heartbeat]] = defaultdict(list)
    for beat in beats:
        by_job[beat.job].append(beat)
    names = names_of_jobs(connection, by_job)
    running = {row.id: row.attempt for row in connection.execute(_RUNNING, {"ids": list(names)})}
    for rule in rules.rules:
        if rule.causes.isdisjoint(CAUSES):
            continue
        where = parse_filter(rule.jobs)
        jobs = running.keys() if where is None else matching_jobs(connection, where, running)
        for job_id in sorted(jobs):
            attempt = running[job_id]
            own = [beat for beat in by_job[job_id] if beat.attempt in (ATTEMPT_UNKNOWN, attempt)]
            if own:
                found = _findings(connection, rule, own, names[job_id], attempt)
                save_alerts(connection, list(found))


def _findings(
    connection: Connection, rule: Rule, beats: Sequence[Heartbeat], name: str, attempt: int
) -> Iterator[Finding]:
    job = {"job_id": beats[0].job, "attempt": attempt}
    identity = f"{job['job_id']}/{attempt}"
    now = datetime.now(UTC)
    quiet_s = min(beat.quiet_s for beat in beats)
    if rule.after_s is not None and quiet_s > rule.after_s and _is_new_pause(connection, rule, job, quiet_s):
        title = f"{name} makes no progress for {quiet_s / 60:,.0f} min"
        key = f"no_progress {identity} at {int(time.time())}"
        yield Finding(rule, key, rule.level_of("no_progress"), title, _place(beats), now, **job)
    largest = max(beats, key=lambda beat: beat.spooled_bytes or 0)
    spooled_mb = (largest.spooled_bytes or 0) / 1e6
    if rule.above_mb is not None and spooled_mb > rule.above_mb:
        title = f"{name}: the spool of a trainer has {spooled_mb:,.0f} MB, above {rule.above_mb:,g}"
        key = f"spool {identity}"
        yield Finding(rule, key, rule.level_of("spool"), title, _place([largest]), now, **job)


def _is_new_pause(connection: Connection, rule: Rule, job: Mapping[str, Any], quiet_s: float) -> bool:
    """Return whether the rule has to report the job: it has not done so since the job's last progress."""
    known = connection.execute(_REPORTED, {"rule": rule.name, "quiet_s": quiet_s, **job})
    return not known.scalar_one()


def _place(beats: Sequence[Heartbeat]) -> str:
    newest = max(beats, key=lambda beat: beat.at)
    known = {"rank": newest.rank, "host": newest.host, "pid": newest.pid, "unsent messages": newest.unsent or None}
    return ", ".join(f"{name} {value}" for name, value in known.items() if value is not None)


_RUNNING: Final = text(
    "SELECT id, attempt FROM training_jobs WHERE id = ANY(:ids) AND status IN ('running', 'stalled') ORDER BY id"
)
_REPORTED: Final = text(
    "SELECT EXISTS (SELECT FROM alerts WHERE rule = :rule AND job_id = :job_id AND attempt = :attempt "
    "AND starts_with(occurrence, 'no_progress') AND occurred_at > now() - make_interval(secs => :quiet_s))"
)
