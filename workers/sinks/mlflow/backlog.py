"""Reads the metric rows after MLflow's cursors, and the attempts that changed since they were sent."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, text

from trainwire.schemas.non_finite import shown_float
from trainwire.schemas.tables import LIFTED, LIFTED_SQL
from trainwire.workers.sinks import cursors
from trainwire.workers.sinks.mlflow.rows import (
    AttemptState,
    DeliveredMetrics,
    MetricBatch,
    MetricRow,
    MirroredAttempt,
)
from trainwire.workers.sinks.mlflow.rules import FINAL_STATUS, STOPPED
from trainwire.workers.sinks.plugin import SinkBacklog

GRACE_S: Final = 60.0
"""An attempt of which no message arrived for this time counts as complete, even if some metrics are missing."""


class MetricBacklog(SinkBacklog[MetricBatch, DeliveredMetrics]):
    """Reads metric rows that MLflow has not confirmed, and attempts that changed since their last delivery."""

    kind = "metrics"

    def __init__(self, sink: str, grace_s: float = GRACE_S) -> None:
        super().__init__(sink)
        self._grace_s = grace_s

    def jobs_behind(self, connection: Connection, limit: int) -> list[int]:
        """Return jobs that are due and have rows or changed attempts to deliver, least recently delivered first.

        At most `limit` jobs are returned. The end of an attempt is delivered once all its metrics are stored, or
        no message of it arrived for `grace_s` seconds.
        """
        wanted = {"sink": self._sink, "limit": limit, "grace_s": self._grace_s, "ended": list(FINAL_STATUS)}
        unsettled = cursors.unsettled(connection, self._sink)
        return list(connection.execute(_JOBS_BEHIND, wanted | {"unsettled": unsettled}).scalars())

    def read(
        self, connection: Connection, job_ids: Sequence[int], most_rows: int, most_bytes: int
    ) -> dict[int, MetricBatch]:
        """Return the attempts and the next metric rows of each job; see `SinkBacklog.read`."""
        wanted = {"jobs": list(job_ids), "grace_s": self._grace_s}
        attempts: dict[int, list[AttemptState]] = defaultdict(list)
        # This order matters: the rows of a settled attempt, and each job's last row, are there when rows are read.
        for row in connection.execute(_READ_ATTEMPTS, wanted).mappings():
            attempts[row["job_id"]].append(_attempt(row))
        last_seqs = {job_id: (seq, made_at) for job_id, seq, made_at in connection.execute(_READ_JOBS, wanted)}
        known = cursors.read_cursors(connection, self._sink, job_ids)
        rows = read_rows(
            connection, {job: cursor.confirmed_seq for job, cursor in known.items()}, most_rows, most_bytes
        )
        return {
            job_id: MetricBatch(
                known[job_id].confirmed_seq,
                last_seq,
                rows[job_id],
                attempts[job_id] + _unrecorded(attempts[job_id], rows[job_id], made_at),
            )
            for job_id, (last_seq, made_at) in last_seqs.items()
        }

    def confirm(self, connection: Connection, delivered: Mapping[int, DeliveredMetrics]) -> None:
        """Record confirmed rows and, for each attempt, its MLflow run and how many changes MLflow received."""
        super().confirm(connection, delivered)
        mirrored = [
            {"job_id": job_id, **_values(attempt)}
            for job_id, done in sorted(delivered.items())
            for attempt in sorted(done.attempts, key=lambda attempt: attempt.before.attempt)
        ]
        # First all jobs, then all attempts: the lock order of a drain.
        linked = [values for values in mirrored if values["run_id"] != values["previous_run_id"]]
        if linked:
            connection.execute(_LINK_JOB, linked)
        if mirrored:
            connection.execute(_SAVE_ATTEMPT, mirrored)


def mirror_again(connection: Connection, job_id: int) -> None:
    """Mark all attempts of a job to be sent to MLflow again.

    If a delivery has found that the run of an attempt was deleted in MLflow, the next one creates a new run.
    """
    connection.execute(_FORGET_LINK, {"job_id": job_id, "stopped": STOPPED})
    connection.execute(_MIRROR_AGAIN, {"job_id": job_id, "stopped": STOPPED})


def read_rows(
    connection: Connection, after: Mapping[int, int], most_rows: int, most_bytes: int
) -> Mapping[int, list[MetricRow]]:
    """Return the next metric rows of each job; `after` is the `seq` of the last row before them, by job.

    For the limits see `SinkBacklog.read`; the size of a row is an estimate.
    """
    wanted = {"jobs": list(after), "after": list(after.values()), "most_rows": most_rows, "most_bytes": most_bytes}
    rows: dict[int, list[MetricRow]] = defaultdict(list)
    for job_id, seq, attempt, rank, source, ts_ms, step, *lifted, extra in connection.execute(_READ_ROWS, wanted):
        values = {
            name: shown_float(value) for name, value in zip(LIFTED, lifted, strict=True) if value is not None
        }
        rows[job_id].append(MetricRow(seq, attempt, rank, source, ts_ms, step, values | (extra or {})))
    return rows


def _attempt(row: RowMapping) -> AttemptState:
    return AttemptState(**{name: value for name, value in row.items() if name != "job_id"})


def _unrecorded(known: Collection[AttemptState], rows: Sequence[MetricRow], made_at: Any) -> list[AttemptState]:
    """Return states for attempts that occur only in metric rows and have no row of their own.

    Their metric rows were stored before the table of attempts existed.
    """
    missing = {row.attempt for row in rows} - {attempt.attempt for attempt in known}
    return [
        AttemptState(attempt=attempt, status="lost", job_created_at=made_at, changes=1, is_settled=True)
        for attempt in sorted(missing)
    ]


def _values(attempt: MirroredAttempt) -> dict[str, Any]:
    before = attempt.before
    return {
        "attempt": before.attempt,
        "status": before.status,
        "run_id": attempt.run_id,
        "previous_run_id": before.mirror_run_id,
        "changes": attempt.changes,
        "notes": json.dumps(attempt.notes) if attempt.notes else None,
    }


_SETTLED: Final = """
    (
        NOT EXISTS (
            SELECT FROM source_positions AS position
            WHERE position.job_id = mirror.job_id AND position.attempt = mirror.attempt AND kind = 'metrics'
            AND (produced IS NULL OR last_seq < produced OR missing <> '[]')
        )
        OR NOT EXISTS (
            SELECT FROM source_positions AS position
            WHERE position.job_id = mirror.job_id AND position.attempt = mirror.attempt
            AND updated_at > now() - make_interval(secs => :grace_s)
        )
    )
"""

_JOBS_BEHIND: Final = text(
    f"""
    SELECT id FROM (
        SELECT id FROM training_jobs LEFT JOIN delivery_cursors ON sink = :sink AND job_id = id
        WHERE settled = ANY(:unsettled) AND last_metric_seq > coalesce(confirmed_seq, 0)
        UNION
        SELECT job_id FROM training_attempts AS mirror JOIN training_jobs ON id = job_id
        WHERE changes > mirrored_changes
        AND (mirror.status <> ALL(:ended) OR {_SETTLED})
    ) AS behind LEFT JOIN delivery_cursors ON sink = :sink AND job_id = id
    WHERE coalesce(next_attempt_at <= now(), true)
    ORDER BY moved_at NULLS FIRST, id LIMIT :limit
    """  # noqa: S608 - our own expression
)

_READ_ATTEMPTS: Final = text(
    f"""
    SELECT job_id, mirror.attempt, mirror.status, created_at AS job_created_at, mirror.name, mirror.started_at,
        mirror.completed_at, CASE WHEN changes > mirrored_changes THEN mirror.params END AS params,
        CASE WHEN changes > mirrored_changes THEN mirror.tags END AS tags,
        CASE WHEN changes > mirrored_changes THEN mirror.provenance - 'diff' - 'packages' END AS provenance,
        mirror.mlflow_run_id, mirror_run_id, changes, mirrored_changes, mirror_notes,
        changes > mirrored_changes AND {_SETTLED} AS is_settled
    FROM training_attempts AS mirror JOIN training_jobs ON id = job_id
    WHERE job_id = ANY(:jobs) ORDER BY job_id, mirror.attempt
    """  # noqa: S608 - our own expression
)

_READ_JOBS: Final = text(
    "SELECT id, last_metric_seq, created_at FROM training_jobs WHERE id = ANY(:jobs) ORDER BY id"
)

_READ_ROWS: Final = text(
    f"""
    SELECT wanted.job_id, seq, attempt, rank, source, CAST(floor(extract(epoch FROM logged_at) * 1000) AS bigint),
        coalesce(step, epoch, 0), {LIFTED_SQL}, extra_metrics
    FROM unnest(CAST(:jobs AS bigint[]), CAST(:after AS bigint[])) AS wanted(job_id, after)
    CROSS JOIN LATERAL (
        SELECT *, sum(bytes) OVER (ORDER BY seq) - bytes AS bytes_before
        FROM (
            SELECT *, 100 + coalesce(pg_column_size(extra_metrics), 0) AS bytes FROM training_metrics
            WHERE job_id = wanted.job_id AND seq > wanted.after ORDER BY seq LIMIT :most_rows
        ) AS next_rows
    ) AS measured
    WHERE bytes_before < :most_bytes ORDER BY wanted.job_id, seq
    """  # noqa: S608 - our own columns
)

_LINK_JOB: Final = text(
    "UPDATE training_jobs SET mlflow_run_id = :run_id WHERE id = :job_id AND attempt = :attempt "
    "AND (mlflow_run_id IS NULL OR mlflow_run_id = :previous_run_id)"
)

_FORGET_LINK: Final = text(
    "UPDATE training_jobs SET mlflow_run_id = NULL FROM training_attempts AS mirror WHERE id = :job_id "
    "AND mirror.job_id = id AND mirror.attempt = training_jobs.attempt "
    "AND mirror.mirror_run_id = training_jobs.mlflow_run_id AND mirror.mirror_notes ? :stopped"
)

_MIRROR_AGAIN: Final = text(
    "UPDATE training_attempts SET mirrored_changes = 0, mirror_notes = NULL, "
    "mirror_run_id = CASE WHEN mirror_notes ? :stopped THEN NULL ELSE mirror_run_id END WHERE job_id = :job_id"
)

_SAVE_ATTEMPT: Final = text(
    """
    INSERT INTO training_attempts AS mirror
        (job_id, attempt, status, mirror_run_id, changes, mirrored_changes, mirror_notes)
    VALUES (:job_id, :attempt, :status, :run_id, greatest(:changes, 1), :changes, CAST(:notes AS jsonb))
    ON CONFLICT (job_id, attempt) DO UPDATE SET mirror_run_id = excluded.mirror_run_id,
        mirrored_changes = excluded.mirrored_changes, mirror_notes = excluded.mirror_notes
    """
)
