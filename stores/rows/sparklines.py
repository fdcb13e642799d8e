"""The newest metric values of jobs in a list, and a sparkline of each job from a sample of its rows."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

from sqlalchemy import Connection, text

from trainwire.schemas.non_finite import Number
from trainwire.schemas.tables import LIFTED, LIFTED_SQL
from trainwire.schemas.wire.heartbeats import SYSTEM_PREFIX
from trainwire.stores.postgres.jobs.job_lookup import Job
from trainwire.stores.rows.event_rows import values_of

LAST_ROWS: Final = 100
"""Number of rows in which the newest values of one job are searched, because not every row has every metric."""
LAST_ROWS_IN_LISTS: Final = 30
MOST_VALUES: Final = 40
SAMPLES: Final = 80
"""Number of rows sampled for one sparkline; more than MOST_VALUES, because not every row has every metric."""
MOST_RESAMPLED: Final = 16_000
"""Largest number of rows that are sampled again, per page of jobs, for jobs with several ranks."""
OfRanks: TypeAlias = dict[int | None, list[float]]
ROW_BYTES: Final = 4096
"""Largest average stored size of `extra_metrics` in the rows of a job; of larger rows some are not read."""
PREFERRED: Final = ("loss", "train_loss", "train/loss", "val_loss", "accuracy")

_LAST: Final = text(
    "SELECT m.* FROM unnest(CAST(:jobs AS bigint[])) AS wanted(id) CROSS JOIN LATERAL ("  # noqa: S608 - our own columns
    f"SELECT job_id, seq, attempt, rank, {LIFTED_SQL}, CASE WHEN sum(coalesce(pg_column_size(extra_metrics), 0)) "
    "OVER (ORDER BY seq DESC) <= :rows * CAST(:row_bytes AS bigint) THEN extra_metrics END AS extra_metrics "
    f"FROM (SELECT job_id, seq, attempt, rank, {LIFTED_SQL}, extra_metrics FROM training_metrics "
    "WHERE job_id = wanted.id ORDER BY seq DESC LIMIT :rows) AS newest) AS m ORDER BY m.seq"
)
_WHEN_LIFTED: Final = " ".join(f"WHEN '{name}' THEN {name}" for name in LIFTED)
# One row for each job and rank: psycopg reads an array in a fraction of the time that a row for each value takes.
_SAMPLED: Final = text(
    f"SELECT m.job_id, m.rank, array_agg(CASE wanted.name {_WHEN_LIFTED} "  # noqa: S608 - our own columns
    "ELSE CAST(extra_metrics ->> wanted.name AS double precision) END ORDER BY m.seq) "
    "FROM unnest(CAST(:jobs AS bigint[]), CAST(:seqs AS bigint[]), CAST(:names AS text[])) "
    "AS wanted(job_id, seq, name) JOIN training_metrics AS m ON m.job_id = wanted.job_id AND m.seq = wanted.seq "
    "GROUP BY m.job_id, m.rank ORDER BY min(m.seq)"
)


def last_values(connection: Connection, job_ids: Iterable[int], rows: int) -> dict[int, dict[str, Number]]:
    """Return job -> metric -> newest value, from the last `rows` rows of each job; jobs without rows are left out.

    If the rows of a job are very large, only metrics with their own column are read from the older ones of them.
    """
    values: dict[int, dict[str, Number]] = defaultdict(dict)
    for row in connection.execute(_LAST, {"jobs": list(job_ids), "rows": rows, "row_bytes": ROW_BYTES}).mappings():
        values[row["job_id"]].update(values_of(row))
    return values


def last_values_by_rank(connection: Connection, job: Job, rows: int) -> dict[str, dict[str, Number]]:
    """Return metric -> rank (as text) -> newest value, from the last `rows` rows of the job.

    Of these rows, those of earlier attempts and those without a rank are left out.
    """
    values: dict[str, dict[str, Number]] = defaultdict(dict)
    bounds = {"jobs": [job.id], "rows": rows, "row_bytes": ROW_BYTES}
    for row in connection.execute(_LAST, bounds).mappings():
        if row["rank"] is None or row["attempt"] != job.attempt:
            continue
        for name, value in values_of(row).items():
            values[name][str(row["rank"])] = value
    return values


def sparklines(
    connection: Connection, jobs: Iterable[Job], last: Mapping[int, Mapping[str, Number]]
) -> dict[int, tuple[str, list[float]]]:
    """Return job -> (name, values) of the metric to show, at most MOST_VALUES; jobs without values are left out.

    `last` has the newest values of the jobs (`last_values`). All values are of one rank: the one with the most
    values in the sample.
    """
    names = {job.id: name for job in jobs if (name := main_metric(last.get(job.id, {}))) is not None}
    rows = {job.id: job.last_metric_seq for job in jobs}
    values = _sampled(connection, [(job, name, rows[job], SAMPLES) for job, name in names.items()])
    # The rows of several ranks are mixed: of each rank there are only a few in the sample.
    few = {
        job: len(ranks) for job, ranks in values.items() if len(ranks) > 1 and len(_longest(ranks)) < MOST_VALUES
    }
    most = MOST_RESAMPLED // max(1, len(few))
    again = [(job, names[job], rows[job], min(SAMPLES * ranks, most)) for job, ranks in few.items()]
    for job, ranks in _sampled(connection, again).items():
        values[job] = max(values[job], ranks, key=lambda sample: len(_longest(sample)))
    return {job: (names[job], thinned(_longest(ranks))) for job, ranks in values.items()}


def main_metric(values: Iterable[str]) -> str | None:
    """Return the metric of a job's sparkline: one of PREFERRED, else the first by name; None without metrics.

    Metrics of the machine, such as its GPU load, are not used.
    """
    names = [name for name in values if not name.startswith(SYSTEM_PREFIX)]
    return next((name for name in PREFERRED if name in names), min(names, default=None))


def spread(first: int, last: int, most: int) -> list[int]:
    """Return at most `most` (2 or more) evenly spaced integers from `first` to `last`, including both."""
    if last - first < most:
        return list(range(first, last + 1))
    return [first + (last - first) * number // (most - 1) for number in range(most)]


def thinned(values: list[float]) -> list[float]:
    """Return at most MOST_VALUES evenly spaced values of the list, including the first and the last."""
    return [values[index] for index in spread(0, len(values) - 1, MOST_VALUES)]


def _longest(of_ranks: OfRanks) -> list[float]:
    return max(of_ranks.values(), key=len)


def _sampled(connection: Connection, wanted: Iterable[tuple[int, str, int, int]]) -> dict[int, OfRanks]:
    """Return job -> rank -> values of a metric, from a sample of the job's rows.

    `wanted` has (job, metric, number of its rows, largest number of rows to read).
    """
    rows = [(job, seq, name) for job, name, last, most in wanted for seq in spread(1, last, most)]
    values: dict[int, OfRanks] = defaultdict(dict)
    for job, rank, sample in connection.execute(_SAMPLED, _columns(rows)) if rows else ():
        if finite := [value for value in sample if value is not None and math.isfinite(value)]:
            values[job][rank] = finite
    return values


def _columns(wanted: list[tuple[int, int, str]]) -> dict[str, Any]:
    jobs, seqs, names = zip(*wanted, strict=True) if wanted else ((), (), ())
    return {"jobs": list(jobs), "seqs": list(seqs), "names": list(names)}
