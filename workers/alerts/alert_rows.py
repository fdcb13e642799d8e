"""Writes alerts to Postgres, each once per rule, occurrence and destination."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, text
from sqlalchemy.dialects.postgresql import insert

from trainwire.schemas.tables import alerts
from trainwire.schemas.wire.messages import AlertLevel
from trainwire.stores.postgres.alerts import CURSOR
from trainwire.stores.postgres.jobs.job_values import SHOWN_NAME
from trainwire.stores.postgres.storable_text import storable_text
from trainwire.workers.alerts.rules import Rule
from trainwire.workers.sinks import cursors


@dataclass(frozen=True, slots=True)
class Finding:
    """A condition that a rule has found and about which alerts are sent.

    `occurrence` identifies the condition, so that it is reported only once.
    """

    rule: Rule
    occurrence: str
    level: AlertLevel
    title: str
    content: str
    occurred_at: datetime
    job_id: int | None = None
    attempt: int | None = None


def lease_evaluation(connection: Connection) -> bool:
    """Lock the evaluation of rules for this transaction; return False if another worker has locked it."""
    return bool(connection.execute(_EVALUATION).scalar_one())


@dataclass(frozen=True, slots=True)
class Period:
    """The data that rules evaluate: data that was stored since `began`, and has a time since `oldest`."""

    began: datetime
    oldest: datetime


def reported_period(connection: Connection, max_age_h: float) -> Period:
    """Return the period that rules evaluate; it begins when rules are evaluated for the first time.

    Its field `oldest` is the time `max_age_h` hours ago.
    """
    connection.execute(_BEGIN, {"cursor": CURSOR})
    return Period(*connection.execute(_PERIOD, {"cursor": CURSOR, "age_s": max_age_h * 3600}).one())


def names_of_jobs(connection: Connection, job_ids: Iterable[int]) -> dict[int, str]:
    """Return display names such as `Job 42 (digits)` by job number.

    The jobs are locked, so that none of them is deleted within this transaction. Jobs that do not exist, or that
    another transaction has locked, are omitted.
    """
    leased = cursors.lease_jobs(connection, CURSOR, set(job_ids))
    found = connection.execute(_NAMES, {"ids": leased}) if leased else ()
    return {job_id: f"Job {job_id} ({name})" if name else f"Job {job_id}" for job_id, name in found}


def save_alerts(connection: Connection, found: Sequence[Finding]) -> int:
    """Write alerts about the findings that are new, for all destinations of their rules; return their number.

    A destination gets at most `at_most_per_h` alerts of a rule per hour; further ones are stored as suppressed and
    not sent, but are included in the number.
    """
    if not found:
        return 0
    rules = {"rules": sorted({finding.rule.name for finding in found})}
    sent = Counter({(rule, to): count for rule, to, count in connection.execute(_LAST_HOUR, rules)})
    written = 0
    for finding in found:
        for destination in finding.rule.destinations:
            key = finding.rule.name, destination
            is_allowed = sent[key] < finding.rule.at_most_per_h
            values = {
                "rule": finding.rule.name,
                "destination": destination,
                "occurrence": finding.occurrence,
                "state": "waiting" if is_allowed else "suppressed",
                "last_error": None if is_allowed else f"more than {finding.rule.at_most_per_h} within an hour",
                "level": finding.level,
                "job_id": finding.job_id,
                "attempt": finding.attempt,
                "title": storable_text(finding.title),
                "content": storable_text(finding.content),
                "occurred_at": finding.occurred_at,
            }
            new = insert(alerts).values(values).on_conflict_do_nothing().returning(alerts.c.id)
            is_new = connection.execute(new).first() is not None
            sent[key] += is_new and is_allowed
            written += is_new
    return written


_EVALUATION: Final = text("SELECT pg_try_advisory_xact_lock(hashtextextended('alerts', 0))")
_NAMES: Final = text(f"SELECT id, {SHOWN_NAME} FROM training_jobs WHERE id = ANY(:ids)")  # noqa: S608 - our own SQL
_LAST_HOUR: Final = text(
    "SELECT rule, destination, count(*) FROM alerts WHERE rule = ANY(:rules) AND state <> 'suppressed' "
    "AND created_at > now() - interval '1 hour' GROUP BY rule, destination"
)
_BEGIN: Final = text(
    "INSERT INTO delivery_cursors (sink, job_id, moved_at) VALUES (:cursor, 0, now()) ON CONFLICT DO NOTHING"
)
_PERIOD: Final = text(
    "SELECT moved_at, now() - make_interval(secs => :age_s) FROM delivery_cursors "
    "WHERE sink = :cursor AND job_id = 0"
)
