"""Builds the JSON documents of jobs, for lists and for single jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import quote

from msgspec import UNSET
from sqlalchemy import Connection, select, text

from trainwire.gateway.documents.job_types import AttemptItem, JobDetail, JobItem, Rows, Sparkline
from trainwire.gateway.documents.response_types import document_from
from trainwire.schemas.non_finite import shown_float
from trainwire.schemas.tables import training_jobs
from trainwire.stores.postgres.checkpoints import last_checkpoint
from trainwire.stores.postgres.columns import MOST_LISTED_NAMES, MOST_SHOWN_NAMES, RESULTS, job_columns
from trainwire.stores.postgres.jobs.attempts import Attempt, find_attempts, renaming
from trainwire.stores.postgres.jobs.job_lookup import Job, find_job, removed_rows
from trainwire.stores.rows.metric_names import MetricNames, names_within
from trainwire.stores.rows.sparklines import (
    LAST_ROWS,
    LAST_ROWS_IN_LISTS,
    last_values,
    last_values_by_rank,
    sparklines,
)
from trainwire.stores.rows.tracebacks import find_traceback

LAST_ROWS_OF_RANKS: Final = 500
MAX_NAMES: Final = 5000
"""Maximum number of metric names in one document, because the feed sends the document to each client."""
MAX_FORKS: Final = 100

_METRIC_RANKS: Final = text(
    "SELECT count(DISTINCT rank) FROM source_positions "
    "WHERE job_id = :job_id AND attempt = :attempt AND kind = 'metrics' AND last_seq > 0"
)
_FORKS: Final = text("SELECT id FROM training_jobs WHERE parent_id = :job_id ORDER BY created_at, id LIMIT :limit")


def job_items_of(connection: Connection, job_ids: Sequence[int]) -> list[JobItem]:
    """Return the documents (`JobItem`) of the jobs in `job_ids` that exist, the newest job first."""
    jobs = training_jobs.c
    query = select(*job_columns(Job, training_jobs, MOST_LISTED_NAMES)).where(jobs.id.in_(job_ids))
    newest_first = query.order_by(jobs.created_at.desc(), jobs.id.desc())
    return job_items(connection, [Job(**row) for row in connection.execute(newest_first).mappings()])


def job_items(
    connection: Connection,
    jobs: Sequence[Job],
    columns: Mapping[int, dict[str, Any]] = MappingProxyType({}),
    *,
    has_details: bool = False,
) -> list[JobItem]:
    """Return the documents (`JobItem`) of `jobs`, in the same order, with a constant number of queries.

    `columns` maps the id of each job to the values of the requested columns. With `has_details`, the documents
    have the jobs' parameters and tags.
    """
    left_out = {} if has_details else {"params": UNSET, "tags": UNSET}
    computed = _computed_fields(connection, jobs, LAST_ROWS_IN_LISTS)
    return [
        document_from(JobItem, job, **fields, **left_out, columns=columns.get(job.id, {}))
        for job, fields in zip(jobs, computed, strict=True)
    ]


def job_detail(
    connection: Connection, job_id: int, names: MetricNames, mlflow_uri: str | None
) -> JobDetail | None:
    """Return the document (`JobDetail`) of one job; None if it is not in Postgres.

    `mlflow_uri` is the address of MLflow in links, None if there is no MLflow.
    """
    job = find_job(connection, job_id)
    if job is None:
        return None
    attempts = find_attempts(connection, job_id)
    (fields,) = _computed_fields(connection, [job], LAST_ROWS)
    for result in RESULTS:
        values = getattr(job, result)
        fields[result] = values and dict(islice(values.items(), MOST_SHOWN_NAMES))
    known = names.of(connection, job_id, job.last_metric_seq)
    shown = names_within(known.ordered, MAX_NAMES)
    return document_from(
        JobDetail,
        job,
        **fields,
        mlflow_url=_mlflow_url(mlflow_uri, job, attempts),
        attempts=[document_from(AttemptItem, attempt) for attempt in attempts],
        metric_names=shown,
        metric_names_complete=known.is_complete(job.last_metric_seq) and len(shown) == len(known.names),
        results_complete=all(len(getattr(job, result) or ()) <= MOST_SHOWN_NAMES for result in RESULTS),
        last_by_rank=last_values_by_rank(connection, job, LAST_ROWS_OF_RANKS),
        metric_ranks=connection.execute(_METRIC_RANKS, {"job_id": job.id, "attempt": job.attempt}).scalar_one(),
        warning=renaming(attempts),
        last_checkpoint=job.last_checkpoint_path or last_checkpoint(connection, job_id),
        removed_rows=removed_rows(connection, job_id),
        columns={},
        forks=list(connection.execute(_FORKS, {"job_id": job_id, "limit": MAX_FORKS}).scalars()),
        traceback=find_traceback(connection, job) if job.status == "failed" else None,
    )


def _mlflow_url(uri: str | None, job: Job, attempts: Iterable[Attempt]) -> str | None:
    """Return the URL of the newest attempt's run in MLflow; None without MLflow or without a run."""
    newest = [attempt.run_id for attempt in attempts if attempt.attempt == job.attempt]
    run_id = job.mlflow_run_id or (newest[0] if newest else None)
    return f"{uri.rstrip('/')}/#/runs/{quote(run_id, safe='')}" if uri and run_id else None


def _computed_fields(connection: Connection, jobs: Sequence[Job], last_rows: int) -> list[dict[str, Any]]:
    """Return, for each job, those fields of its JSON document that are not attributes of `Job`."""
    last = last_values(connection, [job.id for job in jobs], last_rows)
    lines = sparklines(connection, jobs, last)
    return [
        {
            "progress_percent": None if job.progress_percent is None else shown_float(job.progress_percent),
            "final_accuracy": None if job.final_accuracy is None else shown_float(job.final_accuracy),
            "rows": Rows(**job.rows),
            "last_metrics": last.get(job.id, {}),
            "sparkline": Sparkline(name=lines[job.id][0], values=lines[job.id][1]) if job.id in lines else None,
        }
        for job in jobs
    ]
