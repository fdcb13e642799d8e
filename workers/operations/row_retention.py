"""Retention of rows: old log lines and points of finished jobs go, in small batches, the oldest of a job first.

What a sink has not confirmed stays, however old it is; so does everything of a job that is not finished.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import structlog
from sqlalchemy import Connection, Engine, TextClause, text

from trainwire.schemas.messages import FINISHED
from trainwire.schemas.sinks import ROWS
from trainwire.workers.drain.store import postgres_errors
from trainwire.workers.settings import Settings
from trainwire.workers.sinks.plugin import sinks_on

log = structlog.get_logger("trainwire.workers.operations.row_retention")

BATCH_ROWS: Final = 2000
"""Rows of one transaction: it holds the job's lock, for which a drain might wait."""
RUN_S: Final = 30.0
PLANNED_JOBS: Final = 200
"""Most jobs that a dry run names."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """How many days rows of one table stay, and the sinks that must have confirmed a row before it is removed."""

    table: str
    last_seq: str
    removed_seq: str
    days: int
    sinks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OldRows:
    """What the next runs would remove of one job."""

    table: str
    job_id: int
    rows: int


def keepings_of(settings: Settings) -> list[Keeping]:
    """Return what the settings say; empty where nothing is to be removed."""
    kept_days = {"logs": settings.log_retention_days, "metrics": settings.metric_retention_days}
    return [
        Keeping(rows.table, rows.last_seq, rows.removed_seq, days, sinks)
        for kind, rows in ROWS.items()
        if (days := kept_days[kind]) is not None
        for sinks in [tuple(sink.name for sink in sinks_on(settings) if sink.kind == kind)]
    ]


def plan(connection: Connection, keeping: Keeping) -> list[OldRows]:
    """Return the jobs that have rows to remove, with how many; at most `PLANNED_JOBS`."""
    names = _names(keeping) | {"jobs": PLANNED_JOBS}
    counted = connection.execute(_counting(keeping), names)
    return [OldRows(keeping.table, job_id, rows) for job_id, rows in counted]


class RowRetention:
    """Removes rows for about half a minute; several workers at once take different jobs."""

    def __init__(
        self,
        engine: Engine,
        keeping: Keeping,
        *,
        batch_rows: int = BATCH_ROWS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._keeping = keeping
        self._batch_rows = batch_rows
        self._clock = clock

    def run(self, *, dry_run: bool) -> int:
        """Remove rows, or only count them; return how many. Raises `Unavailable` where Postgres is away."""
        with postgres_errors():
            if dry_run:
                return self._name()
            removed, until = 0, self._clock() + RUN_S
            while batch := self._batch():
                removed += batch
                if self._clock() >= until:
                    break
        if removed:
            log.info("row_retention.removed", table=self._keeping.table, rows=removed, days=self._keeping.days)
        return removed

    def _name(self) -> int:
        with self._engine.begin() as connection:
            planned = plan(connection, self._keeping)
        rows = sum(each.rows for each in planned)
        if rows:
            log.info("row_retention.would_remove", table=self._keeping.table, jobs=len(planned), rows=rows)
        return rows

    def _batch(self) -> int:
        """Remove the next rows of one job, in one transaction with the note that they are gone."""
        keeping = self._keeping
        with self._engine.begin() as connection:
            job = connection.execute(_next_job(keeping), _names(keeping)).one_or_none()
            if job is None:
                return 0
            removed, confirmed = job.removed, job.confirmed
            names = {"job_id": job.id, "removed": removed, "confirmed": confirmed, "rows": self._batch_rows}
            through = connection.execute(_old_through(keeping), names | _names(keeping)).scalar_one()
            gone = {"job_id": job.id, "removed": removed, "through": through}
            rows = connection.execute(_removal(keeping), gone).rowcount
            connection.execute(_note(keeping), gone)
        return rows


def _names(keeping: Keeping) -> dict[str, Any]:
    return {"days": keeping.days, "sinks": list(keeping.sinks), "finished": list(FINISHED)}


def _with_old_rows(keeping: Keeping) -> str:
    """Return the FROM and WHERE of finished jobs whose first row that is left is old, and confirmed."""
    first_row = (
        f"SELECT seq, created_at FROM {keeping.table} AS rows WHERE rows.job_id = id "  # noqa: S608 - our own names
        f"AND seq > {keeping.removed_seq} ORDER BY seq LIMIT 1"
    )
    # A young job has no old rows: it is not looked into.
    return (
        "FROM training_jobs "
        f"CROSS JOIN LATERAL ({first_row}) AS oldest "
        f"WHERE status = ANY(:finished) AND training_jobs.created_at < {_BEFORE} "
        f"AND {keeping.last_seq} > {keeping.removed_seq} "
        f"AND oldest.created_at < {_BEFORE} AND oldest.seq <= {_confirmed(keeping)} "
    )


def _confirmed(keeping: Keeping) -> str:
    """Return SQL of the last `seq` that all sinks have confirmed."""
    if not keeping.sinks:
        return keeping.last_seq
    return (
        "(SELECT min(coalesce(confirmed_seq, 0)) FROM unnest(CAST(:sinks AS text[])) AS needed "
        "LEFT JOIN delivery_cursors ON sink = needed AND job_id = training_jobs.id)"
    )


def _next_job(keeping: Keeping) -> TextClause:
    return text(
        f"SELECT id, {keeping.removed_seq} AS removed, {_confirmed(keeping)} AS confirmed "
        f"{_with_old_rows(keeping)} ORDER BY id LIMIT 1 FOR UPDATE OF training_jobs SKIP LOCKED"
    )


def _counting(keeping: Keeping) -> TextClause:
    return text(
        f"SELECT id, (SELECT count(*) FROM {keeping.table} AS old WHERE old.job_id = id "  # noqa: S608 - our own names
        f"AND seq <= {_confirmed(keeping)} AND old.created_at < {_BEFORE}) "
        f"{_with_old_rows(keeping)} ORDER BY id LIMIT :jobs"
    )


def _old_through(keeping: Keeping) -> TextClause:
    """Up to the last row before which none is young: what is left of a job has no holes."""
    return text(
        f"SELECT max(seq) FROM (SELECT seq, bool_and(created_at < {_BEFORE}) OVER (ORDER BY seq) AS is_old FROM ("  # noqa: S608
        f"SELECT seq, created_at FROM {keeping.table} WHERE job_id = :job_id AND seq > :removed "
        "AND seq <= :confirmed ORDER BY seq LIMIT :rows) AS next_rows) AS aged WHERE is_old"
    )


def _removal(keeping: Keeping) -> TextClause:
    return text(f"DELETE FROM {keeping.table} WHERE job_id = :job_id AND seq > :removed AND seq <= :through")  # noqa: S608


def _note(keeping: Keeping) -> TextClause:
    return text(f"UPDATE training_jobs SET {keeping.removed_seq} = :through WHERE id = :job_id")  # noqa: S608


_BEFORE: Final = "now() - make_interval(days => :days)"
