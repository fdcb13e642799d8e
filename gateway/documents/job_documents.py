"""Builds the JSON documents of jobs, for lists and for single jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import Connection, select, text

from trainwire.gateway.documents.response_types import (
    AttemptItem,
    JobDetail,
    JobItem,
    Rows,
    Sparkline,
    document_from,
)
from trainwire.schemas.non_finite import shown_float
from trainwire.schemas.tables import training_jobs
from trainwire.stores.postgres.attempts import Attempt, find_attempts, renaming
from trainwire.stores.postgres.columns import MOST_LISTED_NAMES, MOST_SHOWN_NAMES, RESULTS, job_columns
from trainwire.stores.postgres.jobs import Job, find_job
from trainwire.stores.rows.metric_names import MetricNames, names_within
from trainwire.stores.rows.sparklines import LAST_ROWS, last_values, last_values_by_rank, sparklines

LAST_ROWS_IN_LISTS: Final = 30
LAST_ROWS_OF_RANKS: Final = 500
MAX_NAMES: Final = 5000
"""Maximum number of metric names in one document, because the feed sends the document to each client."""
MAX_TRACEBACK_CHARS: Final = 100_000
_LINE_CHARS: Final = 1000
_LATEST_LINES: Final = 2000
"""Number of newest lines in which a traceback is searched."""
_TRACEBACK_HEADER: Final = "Traceback (most recent call last):"
_CONNECTORS: Final = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)
_LINES_TO_CONNECTOR: Final = 2
"""Number of lines from a traceback's header back to the connector line; one between them is empty."""

_REPORTED_TRACEBACK: Final = text(
    "SELECT left(content, :chars) FROM training_logs WHERE job_id = :job_id AND seq > :after "
    "AND log_type = 'stderr' AND attempt = :attempt AND starts_with(content, 'TRACEBACK:') "
    "ORDER BY seq DESC LIMIT 1"
)
_LINES_OF_TRACEBACK: Final = text(
    "SELECT left(content, :chars) FROM training_logs, ("
    "SELECT source, log_type FROM training_logs WHERE job_id = :job_id AND seq > :after "
    "AND attempt = :attempt AND content = :header ORDER BY seq DESC LIMIT 1) AS found "
    "WHERE job_id = :job_id AND seq > :after AND attempt = :attempt "
    "AND training_logs.source = found.source AND training_logs.log_type = found.log_type ORDER BY seq"
)
"""Query for the newest lines of the source and output stream that printed the newest traceback."""


def job_items_of(connection: Connection, job_ids: Sequence[int]) -> list[JobItem]:
    """Return the documents (`JobItem`) of the jobs in `job_ids`, the newest job first."""
    jobs = training_jobs.c
    query = select(*job_columns(Job, training_jobs, MOST_LISTED_NAMES)).where(jobs.id.in_(job_ids))
    newest_first = query.order_by(jobs.created_at.desc(), jobs.id.desc())
    return job_items(connection, [Job(**row) for row in connection.execute(newest_first).mappings()])


def job_items(
    connection: Connection, jobs: Sequence[Job], columns: Mapping[int, dict[str, Any]] = MappingProxyType({})
) -> list[JobItem]:
    """Return the documents (`JobItem`) of `jobs`, in the same order, with a constant number of queries.

    `columns` maps the id of each job to the values of the requested columns.
    """
    computed = _computed_fields(connection, jobs, LAST_ROWS_IN_LISTS)
    return [
        document_from(JobItem, job, **fields, columns=columns.get(job.id, {}))
        for job, fields in zip(jobs, computed, strict=True)
    ]


def job_detail(
    connection: Connection, job_id: int, names: MetricNames, mlflow_uri: str | None
) -> JobDetail | None:
    """Return the document (`JobDetail`) of one job; None if no message of it has been stored."""
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
        warning=renaming(attempts),
        columns={},
        traceback=_traceback(connection, job) if job.status == "failed" else None,
    )


def _mlflow_url(uri: str | None, job: Job, attempts: Iterable[Attempt]) -> str | None:
    """Return the URL of the newest attempt's run in MLflow; None without MLflow or without a run."""
    newest = [attempt.run_id for attempt in attempts if attempt.attempt == job.attempt]
    run_id = job.mlflow_run_id or (newest[0] if newest else None)
    return f"{uri.rstrip('/')}/#/runs/{quote(run_id, safe='')}" if uri and run_id else None


def _computed_fields(connection: Connection, jobs: Sequence[Job], last_rows: int) -> list[dict[str, Any]]:
    """Return, for each job, the fields of its document that are not attributes of `Job`."""
    last = last_values(connection, [job.id for job in jobs], last_rows)
    lines = sparklines(connection, jobs, last)
    return [
        {
            "progress_percent": None if job.progress_percent is None else shown_float(job.progress_percent),
            "rows": Rows(**job.rows),
            "last_metrics": last.get(job.id, {}),
            "sparkline": Sparkline(name=lines[job.id][0], values=lines[job.id][1]) if job.id in lines else None,
        }
        for job in jobs
    ]


def _traceback(connection: Connection, job: Job) -> str | None:
    """Return the traceback in the job's completion, or else the last one in its log; None without either."""
    names: dict[str, Any] = {
        "job_id": job.id,
        "attempt": job.attempt,
        "after": job.last_log_seq - _LATEST_LINES,
    }
    reported = connection.execute(_REPORTED_TRACEBACK, names | {"chars": MAX_TRACEBACK_CHARS}).scalar_one_or_none()
    if reported is not None:
        return str(reported)
    names |= {"chars": _LINE_CHARS, "header": _TRACEBACK_HEADER}
    printed = last_traceback(connection.execute(_LINES_OF_TRACEBACK, names).scalars().all())
    return None if printed is None else printed[-MAX_TRACEBACK_CHARS:]


def last_traceback(lines: Sequence[str]) -> str | None:
    """Return the last traceback in lines of output, with its chained exceptions; None if there is none."""
    headers = [number for number, line in enumerate(lines) if line == _TRACEBACK_HEADER]
    if not headers:
        return None
    first = last = headers.pop()
    while headers and first >= _LINES_TO_CONNECTOR and lines[first - _LINES_TO_CONNECTOR] in _CONNECTORS:
        first = headers.pop()
    rest = range(last + 1, len(lines))
    end = next((number for number in rest if not lines[number].startswith(" ")), len(lines) - 1)
    return "\n".join(lines[first : end + 1])
