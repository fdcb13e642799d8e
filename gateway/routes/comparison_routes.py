"""The route that compares several jobs."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from fastapi import APIRouter, Query
from sqlalchemy import Connection
from starlette.responses import Response

from trainwire.gateway.documents.job_documents import job_items
from trainwire.gateway.documents.row_types import Comparison, JobSeries
from trainwire.gateway.http.problems import wrong_value
from trainwire.gateway.http.responses import described, json_response
from trainwire.gateway.resources import Resources, job_or_404
from trainwire.gateway.routes.metric_routes import MAX_NAMES, shown_points, wanted_names
from trainwire.gateway.routes.parameters import VIEWER, Names, ResourcesDep
from trainwire.stores.postgres.jobs.job_lookup import Job
from trainwire.stores.postgres.jobs.job_references import number_in
from trainwire.stores.rows.metric_series import MOST_POINTS, SeriesFilter, XAxis, read_series

router = APIRouter(tags=["jobs"], dependencies=VIEWER)
MAX_JOBS = 20


class _SharedNames(NamedTuple):
    names: list[str]
    complete: bool = True


@router.get("/jobs/compare", responses=described(Comparison, 404))
def compare(
    *,
    resources: ResourcesDep,
    ids: Annotated[str, Query(max_length=1000, description="Job numbers, separated by commas.", examples=["1,2"])],
    names: Names = [],  # noqa: B006
    after: Annotated[str, Query(description="Without `names`: only shared metrics after this name.")] = "",
    points: Annotated[int, Query(ge=4, le=5000, description="Maximum points of a series, roughly.")] = 500,
    x: Annotated[XAxis, Query(description="Unit of the first number of a point.")] = "step",
) -> Response:
    """Return up to 20 jobs with series of their metrics: one for each metric and rank of the newest attempt.

    Without `names`, the metrics are those that all of the jobs have, 50 per request; `after` continues with the
    next ones.
    """
    with resources.reading() as connection:
        jobs = [job_or_404(connection, job_id) for job_id in _numbers(ids)]
        shared = _SharedNames(wanted_names(names))
        if not shared.names:
            shared = _shared_names(resources, connection, jobs, after)
        wanted = shared.names[:MAX_NAMES]
        share = MOST_POINTS // len(jobs)
        series = [
            each for job in jobs for each in _series(connection, job, wanted, x, points=points, of_all=share)
        ]
        items = job_items(connection, jobs)
    following = wanted[-1] if len(shared.names) > len(wanted) else None
    return json_response(Comparison(jobs=items, series=series, next=following, complete=shared.complete))


def _series(
    connection: Connection, job: Job, names: list[str], x: XAxis, *, points: int, of_all: int
) -> list[JobSeries]:
    rows = SeriesFilter(job_id=job.id, names=names, last=job.last_metric_seq, attempt=job.attempt)
    by_name, _ = read_series(connection, rows, points, of_all)
    return [
        JobSeries(job_id=job.id, name=name, attempt=attempt, rank=rank, points=shown_points(values, x))
        for (name, attempt, rank), values in by_name.items()
    ]


def _shared_names(resources: Resources, connection: Connection, jobs: list[Job], after: str) -> _SharedNames:
    """Return the names of the metrics that all jobs have, sorted, beginning after the name `after`.

    The result is complete if all names of all jobs are known.
    """
    of_each = [resources.metric_names.of(connection, job.id, job.last_metric_seq) for job in jobs]
    shared = frozenset.intersection(*(known.names for known in of_each))
    complete = all(known.is_complete(job.last_metric_seq) for known, job in zip(of_each, jobs, strict=True))
    return _SharedNames(sorted(name for name in shared if name > after), complete)


def _numbers(ids: str) -> list[int]:
    """Parse comma-separated job numbers; raise a `ProblemError` that names an invalid one."""
    numbers = []
    for text in filter(None, map(str.strip, ids.split(","))):
        number = number_in(text)
        if number is None:
            raise wrong_value("ids", text, "is not a job number: send numbers like 1,2,3")
        numbers.append(number)
    if not 1 <= len(numbers) <= MAX_JOBS:
        raise wrong_value("ids", f"{len(numbers)} jobs", f"send 1 to {MAX_JOBS} job numbers, like 1,2,3")
    return list(dict.fromkeys(numbers))
