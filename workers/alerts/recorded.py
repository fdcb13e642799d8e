"""Evaluates the rules on recorded occurrences: changes of status, calls of `run.alert`, and dead letters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, cast

from sqlalchemy import Connection, Engine, text

from trainwire.schemas.filters.job_filter import parse_filter
from trainwire.schemas.wire.messages import ALERT_LEVELS, AlertLevel
from trainwire.stores.postgres.jobs.job_pages import matching_jobs
from trainwire.workers.alerts.alert_rows import Finding, Period, names_of_jobs, save_alerts
from trainwire.workers.alerts.rules import AlertRules, Rule
from trainwire.workers.drain.store import postgres_errors

AT_ONCE: Final = 500
FORGET_AFTER_S: Final = 7 * 86_400.0
_VERBS: Final = {
    "completed": "has completed",
    "failed": "failed",
    "ended": "has ended with an unknown result",
    "stopped": "was stopped",
    "preempted": "was pre-empted",
    "lost": "is lost",
    "stalled": "is stalled",
}


@dataclass(frozen=True, slots=True)
class Occurrence:
    """Something that alert rules may match, such as a change of status: one row of `alert_occurrences`."""

    id: int
    kind: str
    value: str
    job_id: int | None
    attempt: int | None
    title: str | None
    content: str | None
    occurred_at: datetime
    created_at: datetime
    requested_by: str | None
    """Who asked for the attempt to be stopped, None if nobody has."""
    stop_reason: str | None

    @property
    def cause(self) -> str:
        """The cause under which rules name the occurrence: the new status if a status changed, else the kind."""
        return self.value if self.kind == "status" else self.kind

    @property
    def key(self) -> str:
        """Text that identifies the occurrence, so that it is reported once.

        All dead letters of a job with the same reason within an hour have the same text.
        """
        if self.kind == "dead_letters":
            return f"dead letters of {self.job_id}, {self.value}, {self.occurred_at:%Y-%m-%dT%H}"
        return f"{self.cause} {self.job_id}/{self.attempt} #{self.id}"


def apply_to_recorded(connection: Connection, rules: AlertRules, period: Period) -> bool:
    """Delete up to `AT_ONCE` occurrences, the oldest, and write alerts about them; return whether any was deleted.

    No alerts are written about occurrences outside of `period`, or of deleted jobs. Occurrences of jobs that
    another transaction has locked remain for the next call.
    """
    oldest = [Occurrence(*row) for row in connection.execute(_OLDEST, {"limit": AT_ONCE})]
    jobs = {each.job_id for each in oldest if each.job_id is not None}
    names = names_of_jobs(connection, jobs)
    locked = set(connection.execute(_EXISTING, {"ids": list(jobs - names.keys())}).scalars())
    taken = [each for each in oldest if each.job_id not in locked]
    connection.execute(_DELETE, {"ids": [each.id for each in taken]})
    new = [each for each in taken if each.created_at >= period.began and each.occurred_at >= period.oldest]
    found: list[Finding] = []
    for rule in rules.rules:
        reported = [each for each in new if _is_reported(rule, each)]
        found += _findings(rule, selected(connection, rule, reported), names)
    save_alerts(connection, sorted(found, key=lambda finding: finding.occurred_at))
    return bool(taken)


def forget_occurrences(engine: Engine) -> None:
    """Delete occurrences that no worker has processed for a week, because none is configured with alert rules.

    Raises `Unavailable` if Postgres does not answer.
    """
    with postgres_errors(), engine.begin() as connection:
        connection.execute(_FORGET, {"age_s": FORGET_AFTER_S})


def selected(connection: Connection, rule: Rule, found: Sequence[Occurrence]) -> list[Occurrence]:
    """Return those occurrences in `found` whose jobs match the rule's filter; all of them if it has none."""
    where = parse_filter(rule.jobs)
    if where is None or not found:
        return list(found)
    jobs = matching_jobs(connection, where, {each.job_id for each in found if each.job_id is not None})
    return [each for each in found if each.job_id in jobs]


def _is_reported(rule: Rule, occurrence: Occurrence) -> bool:
    if occurrence.cause not in rule.causes:
        return False
    return occurrence.kind != "alert" or _severity(occurrence.value) >= _severity(rule.min_level)


def _severity(level: str) -> int:
    return ALERT_LEVELS.index(cast("AlertLevel", level))


def _findings(rule: Rule, found: Sequence[Occurrence], names: Mapping[int, str]) -> Iterator[Finding]:
    for each in found:
        if each.job_id is not None and each.job_id not in names:
            continue  # the job was deleted
        job = "An unknown job" if each.job_id is None else names[each.job_id]
        title, content = _texts(each, job)
        level = rule.level or (
            cast("AlertLevel", each.value) if each.kind == "alert" else rule.level_of(each.cause)
        )
        yield Finding(rule, each.key, level, title, content, each.occurred_at, each.job_id, each.attempt)


def _texts(occurrence: Occurrence, job: str) -> tuple[str, str]:
    content = occurrence.content or ""
    verb = _VERBS.get(occurrence.value)
    if occurrence.cause == "stopped" and occurrence.requested_by:
        verb = f"{verb} by {occurrence.requested_by}"
        content = content or occurrence.stop_reason or ""
    if occurrence.kind == "alert":
        return f"{job}: {occurrence.title}", content
    if occurrence.kind == "dead_letters":
        remedy = "See `trainwire dead-letters list`; this is reported once an hour."
        return f"{job}: messages could not be stored ({occurrence.value})", f"{content}\n{remedy}"
    attempt = f" (attempt {occurrence.attempt})" if (occurrence.attempt or 1) > 1 else ""
    return f"{job} {verb}{attempt}", content


_OLDEST: Final = text(
    "SELECT id, kind, value, found.job_id, found.attempt, title, content, occurred_at, created_at, "
    "requested_by, reason "
    "FROM alert_occurrences AS found LEFT JOIN stop_requests AS asked "
    "ON asked.job_id = found.job_id AND asked.attempt = found.attempt "
    "ORDER BY id LIMIT :limit FOR UPDATE OF found SKIP LOCKED"
)
_EXISTING: Final = text("SELECT id FROM training_jobs WHERE id = ANY(:ids)")
_DELETE: Final = text("DELETE FROM alert_occurrences WHERE id = ANY(:ids)")
_FORGET: Final = text("DELETE FROM alert_occurrences WHERE created_at < now() - make_interval(secs => :age_s)")
