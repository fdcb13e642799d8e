"""Jobs as the gateway shows them: in lists, and on their own pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import Connection, text

from trainwire.gateway.documents.documents import AttemptItem, JobDetail, JobItem, Rows, Sparkline
from trainwire.gateway.documents.printed_tracebacks import HEADER, printed_traceback
from trainwire.schemas.non_finite import shown_float
from trainwire.stores.postgres.columns import MOST_SHOWN_NAMES, RESULTS
from trainwire.stores.postgres.jobs import Attempt, Job, find_attempts, find_job
from trainwire.stores.rows.metric_names import MetricNames, names_within
from trainwire.stores.rows.sparklines import LAST_ROWS, last_values, sparklines

LAST_ROWS_IN_LISTS: Final = 30
MAX_TRACEBACK_CHARS: Final = 100_000
_LINE_CHARS: Final = 1000
_LATEST_LINES: Final = 2000
"""A traceback is a row of the end: it is looked for among so many."""
MOST_NAMES: Final = 5000
"""Names of metrics in one document; a feed sends it to each client."""
_COMPUTED: Final = frozenset({"rows", "last_metrics", "sparkline"})
_COPIED: Final = tuple(name for name in JobItem.__struct_fields__ if name not in _COMPUTED)

_TRACEBACK: Final = text(
    "SELECT left(content, :chars) FROM training_logs WHERE job_id = :job_id AND seq > :after "
    "AND log_type = 'stderr' AND attempt = :attempt AND starts_with(content, 'TRACEBACK:') "
    "ORDER BY seq DESC LIMIT 1"
)
_PRINTED: Final = text(
    "SELECT left(content, :chars) FROM training_logs, ("
    "SELECT source, log_type FROM training_logs WHERE job_id = :job_id AND seq > :after "
    "AND attempt = :attempt AND content = :header ORDER BY seq DESC LIMIT 1) AS found "
    "WHERE job_id = :job_id AND seq > :after AND attempt = :attempt "
    "AND training_logs.source = found.source AND training_logs.log_type = found.log_type ORDER BY seq"
)
"""The last lines of the output that a traceback was printed to."""


def job_items(connection: Connection, jobs: Sequence[Job]) -> list[JobItem]:
    """Return jobs as lists show them, in their order; two queries, however many they are."""
    return [JobItem(**fields) for fields in _items(connection, jobs, LAST_ROWS_IN_LISTS)]


def job_detail(
    connection: Connection, job_id: int, names: MetricNames, mlflow_uri: str | None
) -> JobDetail | None:
    """Return a job as its own page shows it; None where no message of it has been stored."""
    job = find_job(connection, job_id)
    if job is None:
        return None
    attempts = find_attempts(connection, job_id)
    (fields,) = _items(connection, [job], LAST_ROWS)
    for result in RESULTS:
        fields[result] = _cut(fields[result])
    known = names.of(connection, job_id, job.last_metric_seq)
    shown = names_within(sorted(known.names), MOST_NAMES)
    return JobDetail(
        **fields,
        params=job.params,
        tags=job.tags,
        mlflow_url=mlflow_url(mlflow_uri, job, attempts),
        attempts=[_attempt(attempt) for attempt in attempts],
        metric_names=shown,
        metric_names_complete=known.is_complete(job.last_metric_seq) and len(shown) == len(known.names),
        results_complete=all(len(getattr(job, result) or ()) <= MOST_SHOWN_NAMES for result in RESULTS),
        traceback=_traceback(connection, job) if job.status == "failed" else None,
    )


def _cut(values: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if values is None else dict(islice(values.items(), MOST_SHOWN_NAMES))


def mlflow_url(uri: str | None, job: Job, attempts: Iterable[Attempt]) -> str | None:
    """Return where MLflow shows the run of the job's newest attempt; None where there is no MLflow, or no run."""
    newest = [attempt.run_id for attempt in attempts if attempt.attempt == job.attempt]
    run_id = job.mlflow_run_id or (newest[0] if newest else None)
    return f"{uri.rstrip('/')}/#/runs/{quote(run_id, safe='')}" if uri and run_id else None


def _items(connection: Connection, jobs: Sequence[Job], last_rows: int) -> list[dict[str, Any]]:
    last = last_values(connection, [job.id for job in jobs], last_rows)
    lines = sparklines(connection, jobs, last)
    return [
        {name: getattr(job, name) for name in _COPIED}
        | {
            "progress_percent": None if job.progress_percent is None else shown_float(job.progress_percent),
            "rows": Rows(**job.rows),
            "last_metrics": last.get(job.id, {}),
            "sparkline": Sparkline(name=lines[job.id][0], values=lines[job.id][1]) if job.id in lines else None,
        }
        for job in jobs
    ]


def _attempt(attempt: Attempt) -> AttemptItem:
    return AttemptItem(**{name: getattr(attempt, name) for name in AttemptItem.__struct_fields__})


def _traceback(connection: Connection, job: Job) -> str | None:
    names = {"job_id": job.id, "attempt": job.attempt, "after": job.last_log_seq - _LATEST_LINES}
    stated = connection.execute(_TRACEBACK, names | {"chars": MAX_TRACEBACK_CHARS}).scalar_one_or_none()
    if stated is not None:
        return str(stated)
    lines = connection.execute(_PRINTED, names | {"chars": _LINE_CHARS, "header": HEADER}).scalars().all()
    printed = printed_traceback(lines)
    return None if printed is None else printed[-MAX_TRACEBACK_CHARS:]
