"""The newest values of jobs and their course in a few numbers, for lists: some rows of each, never all."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final

from sqlalchemy import Connection, text

from trainwire.schemas.heartbeats import SYSTEM_PREFIX
from trainwire.schemas.non_finite import Number
from trainwire.schemas.tables import LIFTED, LIFTED_SQL
from trainwire.stores.postgres.jobs import Job
from trainwire.stores.rows.event_rows import values_of

LAST_ROWS: Final = 100
"""The newest values of one job are those of its last rows: a loss every step, an accuracy every epoch."""
MOST_VALUES: Final = 40
SAMPLES: Final = 80
"""Rows looked at for one line: not every row has every metric."""
ROW_BYTES: Final = 4096
"""Of the other metrics of a row, as Postgres stores them, on average."""
PREFERRED: Final = ("loss", "train_loss", "train/loss", "val_loss", "accuracy")

_LAST: Final = text(
    "SELECT m.* FROM unnest(CAST(:jobs AS bigint[])) AS wanted(id) CROSS JOIN LATERAL ("  # noqa: S608 - our own columns
    f"SELECT job_id, seq, {LIFTED_SQL}, CASE WHEN sum(coalesce(pg_column_size(extra_metrics), 0)) "
    "OVER (ORDER BY seq DESC) <= :rows * CAST(:row_bytes AS bigint) THEN extra_metrics END AS extra_metrics "
    f"FROM (SELECT job_id, seq, {LIFTED_SQL}, extra_metrics FROM training_metrics "
    "WHERE job_id = wanted.id ORDER BY seq DESC LIMIT :rows) AS newest) AS m ORDER BY m.seq"
)
_WHEN_LIFTED: Final = " ".join(f"WHEN '{name}' THEN {name}" for name in LIFTED)
_SAMPLED: Final = text(
    f"SELECT m.job_id, m.seq, CASE wanted.name {_WHEN_LIFTED} "  # noqa: S608 - our own columns
    "ELSE CAST(extra_metrics ->> wanted.name AS double precision) END "
    "AS value FROM unnest(CAST(:jobs AS bigint[]), CAST(:seqs AS bigint[]), CAST(:names AS text[])) "
    "AS wanted(job_id, seq, name) JOIN training_metrics AS m ON m.job_id = wanted.job_id AND m.seq = wanted.seq "
    "ORDER BY m.seq"
)


def last_values(connection: Connection, job_ids: Iterable[int], rows: int) -> dict[int, dict[str, Number]]:
    """Return for each job the newest value of each metric among its last rows.

    Of jobs with very large rows, of the older ones only the metrics with columns of their own are read.
    """
    values: dict[int, dict[str, Number]] = defaultdict(dict)
    for row in connection.execute(_LAST, {"jobs": list(job_ids), "rows": rows, "row_bytes": ROW_BYTES}).mappings():
        values[row["job_id"]].update(values_of(row))
    return values


def sparklines(
    connection: Connection, jobs: Iterable[Job], last: Mapping[int, Mapping[str, Number]]
) -> dict[int, tuple[str, list[float]]]:
    """Return for each job that has a metric its most telling one, in at most 40 values."""
    names = {job.id: name for job in jobs if (name := telling_name(last.get(job.id, {}))) is not None}
    wanted = [
        (job.id, seq, names[job.id]) for job in jobs if job.id in names for seq in spread(job.last_metric_seq)
    ]
    values: dict[int, list[float]] = defaultdict(list)
    for job_id, _, value in connection.execute(_SAMPLED, _columns(wanted)):
        if value is not None and math.isfinite(value):
            values[job_id].append(value)
    return {job_id: (names[job_id], thinned(found)) for job_id, found in values.items()}


def telling_name(values: Iterable[str]) -> str | None:
    """Return the metric that says most of a training; how busy the machine was says nothing."""
    names = [name for name in values if not name.startswith(SYSTEM_PREFIX)]
    return next((name for name in PREFERRED if name in names), min(names, default=None))


def spread(last_seq: int) -> list[int]:
    """Return at most `SAMPLES` numbers from 1 to the last, both among them."""
    if last_seq <= SAMPLES:
        return list(range(1, last_seq + 1))
    return [1 + (last_seq - 1) * number // (SAMPLES - 1) for number in range(SAMPLES)]


def thinned(values: list[float]) -> list[float]:
    """Return at most 40 of the values, the first and the last among them."""
    if len(values) <= MOST_VALUES:
        return values
    return [values[(len(values) - 1) * number // (MOST_VALUES - 1)] for number in range(MOST_VALUES)]


def _columns(wanted: list[tuple[int, int, str]]) -> dict[str, Any]:
    jobs, seqs, names = zip(*wanted, strict=True) if wanted else ((), (), ())
    return {"jobs": list(jobs), "seqs": list(seqs), "names": list(names)}
