"""The newest values and a sparkline of each job in a list, from a sample of its rows."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

from sqlalchemy import Connection, text

from trainwire.schemas.heartbeats import SYSTEM_PREFIX
from trainwire.schemas.non_finite import Number
from trainwire.schemas.tables import LIFTED, LIFTED_SQL
from trainwire.stores.postgres.jobs import Job
from trainwire.stores.rows.event_rows import values_of

LAST_ROWS: Final = 100
"""Rows in which the newest values of one job are searched: not every row has every metric."""
LAST_ROWS_IN_LISTS: Final = 30
MOST_VALUES: Final = 40
SAMPLES: Final = 80
"""Rows sampled for one line, more than `MOST_VALUES`: not every row has every metric."""
MOST_RESAMPLED: Final = 16_000
"""Most rows in which more values of jobs with several ranks are searched, for a page of jobs."""
OfRanks: TypeAlias = dict[int | None, list[float]]
ROW_BYTES: Final = 4096
"""Most bytes of `extra_metrics` per row, as stored, on average over the rows of a job."""
PREFERRED: Final = ("loss", "train_loss", "train/loss", "val_loss", "accuracy")

_LAST: Final = text(
    "SELECT m.* FROM unnest(CAST(:jobs AS bigint[])) AS wanted(id) CROSS JOIN LATERAL ("  # noqa: S608 - our own columns
    f"SELECT job_id, seq, attempt, rank, {LIFTED_SQL}, CASE WHEN sum(coalesce(pg_column_size(extra_metrics), 0)) "
    "OVER (ORDER BY seq DESC) <= :rows * CAST(:row_bytes AS bigint) THEN extra_metrics END AS extra_metrics "
    f"FROM (SELECT job_id, seq, attempt, rank, {LIFTED_SQL}, extra_metrics FROM training_metrics "
    "WHERE job_id = wanted.id ORDER BY seq DESC LIMIT :rows) AS newest) AS m ORDER BY m.seq"
)
_WHEN_LIFTED: Final = " ".join(f"WHEN '{name}' THEN {name}" for name in LIFTED)
_SAMPLED: Final = text(
    f"SELECT m.job_id, m.rank, CASE wanted.name {_WHEN_LIFTED} "  # noqa: S608 - our own columns
    "ELSE CAST(extra_metrics ->> wanted.name AS double precision) END "
    "AS value FROM unnest(CAST(:jobs AS bigint[]), CAST(:seqs AS bigint[]), CAST(:names AS text[])) "
    "AS wanted(job_id, seq, name) JOIN training_metrics AS m ON m.job_id = wanted.job_id AND m.seq = wanted.seq "
    "ORDER BY m.seq"
)


def last_values(connection: Connection, job_ids: Iterable[int], rows: int) -> dict[int, dict[str, Number]]:
    """Return for each job the newest value of each metric among its last rows.

    Of a job with very large rows, only the lifted metrics of its older rows are read.
    """
    values: dict[int, dict[str, Number]] = defaultdict(dict)
    for row in connection.execute(_LAST, {"jobs": list(job_ids), "rows": rows, "row_bytes": ROW_BYTES}).mappings():
        values[row["job_id"]].update(values_of(row))
    return values


def last_values_by_rank(connection: Connection, job: Job, rows: int) -> dict[str, dict[str, Number]]:
    """Return for each metric the newest value of each rank (as text), from the last rows of the newest attempt."""
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
    """Return the name and at most 40 values of one metric of each job, all of the rank with most of them."""
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
    """Return the metric to show for a job: a preferred one, else the first by name; no system metric."""
    names = [name for name in values if not name.startswith(SYSTEM_PREFIX)]
    return next((name for name in PREFERRED if name in names), min(names, default=None))


def spread(first: int, last: int, most: int) -> list[int]:
    """Return at most `most` evenly spaced numbers from `first` to `last`, both included."""
    if last - first < most:
        return list(range(first, last + 1))
    return [first + (last - first) * number // (most - 1) for number in range(most)]


def thinned(values: list[float]) -> list[float]:
    """Return at most 40 evenly spaced values, the first and the last included."""
    return [values[index] for index in spread(0, len(values) - 1, MOST_VALUES)]


def _longest(of_ranks: OfRanks) -> list[float]:
    return max(of_ranks.values(), key=len)


def _sampled(connection: Connection, wanted: Iterable[tuple[int, str, int, int]]) -> dict[int, OfRanks]:
    """Return values by job and rank; `wanted`: job, metric, number of rows, and most rows of them to read."""
    rows = [(job, seq, name) for job, name, last, most in wanted for seq in spread(1, last, most)]
    values: dict[int, OfRanks] = defaultdict(lambda: defaultdict(list))
    for job, rank, value in connection.execute(_SAMPLED, _columns(rows)) if rows else ():
        if value is not None and math.isfinite(value):
            values[job][rank].append(value)
    return values


def _columns(wanted: list[tuple[int, int, str]]) -> dict[str, Any]:
    jobs, seqs, names = zip(*wanted, strict=True) if wanted else ((), (), ())
    return {"jobs": list(jobs), "seqs": list(seqs), "names": list(names)}
