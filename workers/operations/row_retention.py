"""Deletes old log and metric rows of finished jobs in small batches, a job's oldest rows first.

Rows that a sink has not confirmed are kept, and all rows of jobs that have not finished.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import structlog
from sqlalchemy import Connection, Engine, TextClause, text

from trainwire.schemas.sinks import ROWS
from trainwire.schemas.tables import ROLLUPS_CURSOR
from trainwire.schemas.wire.messages import FINISHED
from trainwire.stores.rows.metric_blocks import TAIL
from trainwire.workers.drain.store import postgres_errors
from trainwire.workers.settings import Settings
from trainwire.workers.sinks import cursors
from trainwire.workers.sinks.plugin import sinks_on

log = structlog.get_logger("trainwire.workers.operations.row_retention")

BATCH_ROWS: Final = 2000
"""Maximum number of rows per transaction, which locks the job: a drain may wait for that lock."""
RUN_S: Final = 30.0
PLANNED_JOBS: Final = 200
"""Maximum number of jobs in the result of a dry run."""


@dataclass(frozen=True, slots=True)
class RowPolicy:
    """The retention of one table: the number of days to keep rows, and the sinks that must have confirmed them."""

    table: str
    last_seq: str
    removed_seq: str
    days: int
    sinks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OldRows:
    """The number of rows of one job that are to be deleted."""

    table: str
    job_id: int
    rows: int


def row_policies(settings: Settings) -> list[RowPolicy]:
    """Return the retention policies from the settings; empty if rows are kept for ever."""
    kept_days = {"logs": settings.log_retention_days, "metrics": settings.metric_retention_days}
    return [
        RowPolicy(rows.table, rows.last_seq, rows.removed_seq, days, sinks)
        for kind, rows in ROWS.items()
        if (days := kept_days[kind]) is not None
        for sinks in [tuple(sink.name for sink in sinks_on(settings) if sink.kind == kind)]
    ]


def plan(connection: Connection, policy: RowPolicy) -> list[OldRows]:
    """Return the number of rows to delete by job, for at most `PLANNED_JOBS` jobs."""
    names = _names(policy) | {"jobs": PLANNED_JOBS}
    counted = connection.execute(_counting(policy), names)
    return [OldRows(policy.table, job_id, rows) for job_id, rows in counted]


class RowRetention:
    """Deletes old rows according to one policy, in batches of up to `batch_rows`, or counts them in a dry run.

    Concurrent workers process different jobs.
    """

    def __init__(
        self,
        engine: Engine,
        policy: RowPolicy,
        *,
        batch_rows: int = BATCH_ROWS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._policy = policy
        self._batch_rows = batch_rows
        self._clock = clock

    def run(self, *, dry_run: bool) -> int:
        """Delete old rows for about `RUN_S` seconds, or in a dry run count them; return their number.

        A dry run examines at most `PLANNED_JOBS` jobs. Raises `Unavailable` if Postgres does not answer.
        """
        with postgres_errors():
            if dry_run:
                return self._count()
            removed, until = 0, self._clock() + RUN_S
            while batch := self._batch():
                removed += batch
                if self._clock() >= until:
                    break
        if removed:
            log.info("row_retention.removed", table=self._policy.table, rows=removed, days=self._policy.days)
        return removed

    def _count(self) -> int:
        with self._engine.begin() as connection:
            planned = plan(connection, self._policy)
        rows = sum(each.rows for each in planned)
        if rows:
            log.info("row_retention.would_remove", table=self._policy.table, jobs=len(planned), rows=rows)
        return rows

    def _batch(self) -> int:
        """Delete the next rows of one job, and record this in the job's row; return how many rows were deleted."""
        policy = self._policy
        with self._engine.begin() as connection:
            job = connection.execute(_next_job(policy), _names(policy)).one_or_none()
            if job is None:
                return 0
            removed, confirmed = job.removed, job.confirmed
            names = {"job_id": job.id, "removed": removed, "confirmed": confirmed, "rows": self._batch_rows}
            through = connection.execute(_old_through(policy), names | _names(policy)).scalar_one()
            gone = {"job_id": job.id, "removed": removed, "through": through}
            removal = f"DELETE FROM {policy.table} WHERE job_id = :job_id AND seq > :removed AND seq <= :through"  # noqa: S608
            rows = connection.execute(text(removal), gone).rowcount
            record = f"UPDATE training_jobs SET {policy.removed_seq} = :through WHERE id = :job_id"  # noqa: S608
            connection.execute(text(record), gone)
            if policy.table == "training_metrics" and (rows < self._batch_rows or through == confirmed):
                _remove_blocks(connection, job.id, through)
        return rows


def _remove_blocks(connection: Connection, job_id: int, through: int) -> None:
    """Delete those metric blocks of a job of which all rows are deleted; without any rows left, also its series.

    This is done after the last batch of rows. Until then, charts omit the points of deleted rows. Waits until no
    rollup of the job runs.
    """
    cursors.await_lease(connection, ROLLUPS_CURSOR, job_id)
    gone = {"job_id": job_id, "through": through, "tail": TAIL}
    connection.execute(_REMOVE_BLOCKS, gone)
    for statement in _REMOVE_SERIES:
        connection.execute(statement, gone)


def _names(policy: RowPolicy) -> dict[str, Any]:
    return {"days": policy.days, "sinks": list(policy.sinks), "finished": list(FINISHED)}


def _with_old_rows(policy: RowPolicy) -> str:
    """Return FROM and WHERE clauses for finished jobs whose first row is old and confirmed by all sinks."""
    first_row = (
        f"SELECT seq, created_at FROM {policy.table} AS rows WHERE rows.job_id = id "  # noqa: S608 - our own names
        f"AND seq > {policy.removed_seq} ORDER BY seq LIMIT 1"
    )
    # A young job has no old rows: the first condition skips it.
    return (
        "FROM training_jobs "
        f"CROSS JOIN LATERAL ({first_row}) AS oldest "
        f"WHERE status = ANY(:finished) AND training_jobs.created_at < {_BEFORE} "
        f"AND {policy.last_seq} > {policy.removed_seq} "
        f"AND oldest.created_at < {_BEFORE} AND oldest.seq <= {_confirmed(policy)} "
    )


def _confirmed(policy: RowPolicy) -> str:
    """Return SQL for the last `seq` of a job that all sinks have confirmed."""
    if not policy.sinks:
        return policy.last_seq
    return (
        "(SELECT min(coalesce(confirmed_seq, 0)) FROM unnest(CAST(:sinks AS text[])) AS needed "
        "LEFT JOIN delivery_cursors ON sink = needed AND job_id = training_jobs.id)"
    )


def _next_job(policy: RowPolicy) -> TextClause:
    return text(
        f"SELECT id, {policy.removed_seq} AS removed, {_confirmed(policy)} AS confirmed "
        f"{_with_old_rows(policy)} ORDER BY id LIMIT 1 FOR UPDATE OF training_jobs SKIP LOCKED"
    )


def _counting(policy: RowPolicy) -> TextClause:
    return text(
        f"SELECT id, (SELECT count(*) FROM {policy.table} AS old WHERE old.job_id = id "  # noqa: S608 - our own names
        f"AND seq <= {_confirmed(policy)} AND old.created_at < {_BEFORE}) "
        f"{_with_old_rows(policy)} ORDER BY id LIMIT :jobs"
    )


def _old_through(policy: RowPolicy) -> TextClause:
    """Return the query for the last `seq` before the first row that is not old, so that no gap remains."""
    return text(
        f"SELECT max(seq) FROM (SELECT seq, bool_and(created_at < {_BEFORE}) OVER (ORDER BY seq) AS is_old FROM ("  # noqa: S608
        f"SELECT seq, created_at FROM {policy.table} WHERE job_id = :job_id AND seq > :removed "
        "AND seq <= :confirmed ORDER BY seq LIMIT :rows) AS next_rows) AS aged WHERE is_old"
    )


_REMOVE_BLOCKS: Final = text(
    "DELETE FROM metric_blocks WHERE job_id = :job_id AND last_seq <= :through AND level > :tail"
)
# If no row is left at all.
_REMOVE_SERIES: Final = [
    text(
        f"DELETE FROM {table} WHERE job_id = :job_id "  # noqa: S608 - our own tables
        "AND EXISTS (SELECT FROM training_jobs WHERE id = :job_id AND last_metric_seq = :through)"
    )
    for table in ("metric_blocks", "metric_series")
]
_BEFORE: Final = "now() - make_interval(days => :days)"
