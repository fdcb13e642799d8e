"""Searches new metric rows for NaN and for values outside of the bounds of rules.

Like a sink, it has a cursor per job, so the drain has no additional work. Without a rule about metrics, it reads
no rows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Engine, text

from trainwire.schemas.filters.job_filter import parse_filter
from trainwire.schemas.lifted_metrics import COLUMN_OF, LIFTED
from trainwire.schemas.non_finite import shown_value
from trainwire.schemas.tables import LIFTED_SQL
from trainwire.stores.postgres.alerts import CURSOR
from trainwire.stores.postgres.jobs.job_pages import matching_jobs
from trainwire.workers.alerts.alert_rows import Finding, Period, lease_evaluation, names_of_jobs, save_alerts
from trainwire.workers.alerts.rules import AlertRules, Rule
from trainwire.workers.sinks import cursors
from trainwire.workers.sinks.base import Delivered

JOBS_AT_ONCE: Final = 100
ROWS_AT_ONCE: Final = 100_000
SHOWN_NAMES: Final = 5
_NOT_FINITE: Final = "IN ('NaN', 'Infinity', '-Infinity')"
_ANY_NOT_FINITE: Final = " OR ".join(
    [f"{column} {_NOT_FINITE}" for column in LIFTED]
    + ["""extra_metrics @? '$.* ? (@ == "NaN" || @ == "Infinity" || @ == "-Infinity")'"""]
)


@dataclass(frozen=True, slots=True)
class Part:
    """The next metric rows of one job: those with a `seq` above `after`, up to `last`."""

    job_id: int
    after: int
    last: int


class MetricWatch:
    """Evaluates the rules about metrics on the new rows of all jobs."""

    def __init__(self, engine: Engine, rules: AlertRules, period: Period) -> None:
        self._engine = engine
        self._rules = [*rules.with_cause("metric"), *rules.with_cause("nan")]
        self._period = {"began": period.began, "oldest": period.oldest}

    def run(self, slice_s: float) -> None:
        """Read new metric rows and write alerts about them, in one transaction after another.

        If there are rules about metrics, at least one transaction is executed. None begins after `slice_s`
        seconds; the next call continues.
        """
        deadline = time.monotonic() + slice_s
        while self._rules and self._next_part() and time.monotonic() < deadline:
            pass

    def _next_part(self) -> bool:
        """Evaluate the next rows of up to `JOBS_AT_ONCE` jobs in one transaction; return whether more may exist.

        Returns False as well if another worker evaluates rules.
        """
        with self._engine.begin() as connection:
            behind = cursors.jobs_behind(connection, CURSOR, "metrics", JOBS_AT_ONCE)
            if not behind or not lease_evaluation(connection):
                cursors.settle(connection, CURSOR, "metrics")
                return False
            names = names_of_jobs(connection, behind)
            parts = self._parts(connection, list(names))
            for rule in self._rules:
                save_alerts(connection, list(self._find(connection, rule, parts, names)))
            moved = {part.job_id: Delivered(part.last) for part in parts}
            cursors.confirm(connection, CURSOR, "metrics", moved)
        return bool(moved)

    def _parts(self, connection: Connection, job_ids: Sequence[int]) -> list[Part]:
        """Return the rows to evaluate next for each job, up to `ROWS_AT_ONCE` in total.

        If a job sent nothing in the period that rules evaluate, all its rows are skipped.
        """
        known = cursors.read_cursors(connection, CURSOR, job_ids)
        most = ROWS_AT_ONCE // max(1, len(job_ids))
        found = connection.execute(_LAST_SEQS, {"ids": list(job_ids), **self._period})
        return [
            Part(job_id, after, last if is_old else min(last, after + most))
            for job_id, last, is_old in found
            for after in [last if is_old else known[job_id].confirmed_seq]
        ]

    def _find(
        self, connection: Connection, rule: Rule, parts: Sequence[Part], names: Mapping[int, str]
    ) -> Iterator[Finding]:
        """Yield a finding for the first row of each attempt that the rule matches, for each of its conditions.

        Nothing is yielded for an attempt about which the rule has already reported.
        """
        where = parse_filter(rule.jobs)
        jobs = names.keys() if where is None else matching_jobs(connection, where, names)
        wanted = [part for part in parts if part.job_id in jobs and part.last > part.after]
        for cause, condition, value in _conditions(rule):
            bounds: dict[str, Any] = {
                "jobs": [part.job_id for part in wanted],
                "afters": [part.after for part in wanted],
                "lasts": [part.last for part in wanted],
                "rule": rule.name,
                "cause": cause,
            }
            bounds |= {"metric": rule.metric, "above": rule.above, "below": rule.below, **self._period}
            query = text(_ROWS.format(condition=condition, value=value))
            used = {name: bounds[name] for name in bounds if f":{name}" in query.text}
            rows = connection.execute(query, used).mappings() if wanted else ()
            for row in map(dict, rows):
                title = f"{names[row['job_id']]}: {_shown(rule, cause, row)}"
                yield Finding(
                    *(rule, row["occurrence"], rule.level_of(cause), title, _place(row), row["logged_at"]),
                    job_id=row["job_id"],
                    attempt=row["attempt"],
                )


def _conditions(rule: Rule) -> Iterator[tuple[str, str, str]]:
    """Yield (cause, SQL condition, SQL value) for each bound (`above`, `below`) and NaN check of the rule.

    In Postgres, NaN is larger than all other numbers.
    """
    name = COLUMN_OF.get(rule.metric or "", rule.metric)
    value = str(name) if name in LIFTED else "CAST(extra_metrics ->> CAST(:metric AS text) AS double precision)"
    if "metric" in rule.causes:
        if rule.above is not None:
            yield "metric", f"{value} > CAST(:above AS double precision) AND {value} <> 'NaN'", value
        if rule.below is not None:
            yield "metric", f"{value} < CAST(:below AS double precision)", value
    if "nan" in rule.causes:
        is_any = rule.metric is None
        yield "nan", _ANY_NOT_FINITE if is_any else f"{value} {_NOT_FINITE}", "NULL" if is_any else value


def _shown(rule: Rule, cause: str, row: Mapping[str, Any]) -> str:
    if cause == "nan" and rule.metric is None:
        values = {name: row[name] for name in LIFTED} | (row["extra_metrics"] or {})
        shown = [f"{name} is {found}" for name, value in values.items() if (found := _text(value)) is not None]
        more = f" and {len(shown) - SHOWN_NAMES} more" if len(shown) > SHOWN_NAMES else ""
        return ", ".join(shown[:SHOWN_NAMES]) + more
    if cause == "nan":
        return f"{rule.metric} is {_text(row['value'])}"
    if rule.above is not None and row["value"] > rule.above:
        return f"{rule.metric} is {row['value']:g}, above {rule.above:g}"
    return f"{rule.metric} is {row['value']:g}, below {rule.below:g}"


def _text(value: Any) -> str | None:
    """Return `NaN`, `Infinity` or `-Infinity`; None if `value` is a finite number."""
    shown = shown_value(value)
    return shown if isinstance(shown, str) else None


def _place(row: Mapping[str, Any]) -> str:
    known = {name: row[name] for name in ("epoch", "step", "rank") if row[name] is not None}
    return ", ".join(f"{name} {value:,}" for name, value in {**known, "attempt": row["attempt"]}.items())


_LAST_SEQS: Final = text(
    "SELECT id, last_metric_seq, coalesce(last_seen_at < greatest(:began, :oldest), false) "
    "FROM training_jobs WHERE id = ANY(:ids) ORDER BY id"
)
_ROWS: Final = f"""
    SELECT DISTINCT ON (job_id, attempt) job_id, attempt, seq, rank, step, epoch, logged_at, {LIFTED_SQL},
        extra_metrics, {{value}} AS value, occurrence
    FROM unnest(CAST(:jobs AS bigint[]), CAST(:afters AS bigint[]), CAST(:lasts AS bigint[]))
        AS part(id, after_seq, last_seq)
    JOIN training_metrics ON job_id = id AND seq > after_seq AND seq <= last_seq
    CROSS JOIN LATERAL (
        SELECT CAST(:cause AS text) || ' ' || job_id || '/' || attempt AS occurrence
    ) AS identity
    WHERE created_at >= :began AND logged_at >= :oldest AND ({{condition}})
        AND NOT EXISTS (SELECT FROM alerts WHERE rule = :rule AND alerts.occurrence = identity.occurrence)
    ORDER BY job_id, attempt, seq
"""  # noqa: S608 - our own column names
