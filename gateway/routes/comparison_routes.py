"""Route to compare several jobs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy import Connection
from starlette.responses import Response

from trainwire.gateway.auth.authorization import parse_number
from trainwire.gateway.documents.job_documents import job_items
from trainwire.gateway.documents.response_types import Comparison, JobSeries
from trainwire.gateway.http.problems import wrong_value
from trainwire.gateway.http.responses import described, json_response
from trainwire.gateway.resources import Resources, job_or_404
from trainwire.gateway.routes.metric_routes import shown_points, wanted_names
from trainwire.gateway.routes.parameters import VIEWER, Names, ResourcesDep
from trainwire.schemas.validation import MAX_ID
from trainwire.stores.postgres.jobs import Job
from trainwire.stores.rows.metric_series import MOST_POINTS, SeriesFilter, XAxis, read_series

router = APIRouter(tags=["jobs"], dependencies=VIEWER)
MAX_JOBS = 20


@router.get("/jobs/compare", responses=described(Comparison, 404))
def compare(
    resources: ResourcesDep,
    ids: Annotated[str, Query(max_length=1000, description="Job numbers, separated by commas.", examples=["1,2"])],
    names: Names = [],  # noqa: B006
    points: Annotated[int, Query(ge=4, le=5000, description="Maximum points of a series, roughly.")] = 500,
    x: Annotated[XAxis, Query(description="Unit of the first number of a point.")] = "step",
) -> Response:
    """Return jobs with series of their newest attempts; without `names`, of metrics that all these jobs have."""
    with resources.reading() as connection:
        jobs = [job_or_404(connection, job_id) for job_id in _numbers(ids)]
        wanted = wanted_names(names) or _common_names(resources, connection, jobs)
        share = MOST_POINTS // len(jobs)
        series = [
            each for job in jobs for each in _series(connection, job, wanted, x, points=points, of_all=share)
        ]
        items = job_items(connection, jobs)
    return json_response(Comparison(jobs=items, series=series))


def _series(
    connection: Connection, job: Job, names: list[str], x: XAxis, *, points: int, of_all: int
) -> list[JobSeries]:
    rows = SeriesFilter(job_id=job.id, names=names, last=job.last_metric_seq, attempt=job.attempt)
    by_name, _ = read_series(connection, rows, points, of_all)
    return [
        JobSeries(job_id=job.id, name=name, attempt=attempt, points=shown_points(values, x))
        for (name, attempt, _), values in by_name.items()
    ]


def _common_names(resources: Resources, connection: Connection, jobs: list[Job]) -> list[str]:
    of_each = [resources.metric_names.of(connection, job.id, job.last_metric_seq) for job in jobs]
    return sorted(frozenset.intersection(*(known.names for known in of_each)))[:10]


def _numbers(ids: str) -> list[int]:
    """Parse a list of job numbers; raise a `ProblemError` that names an invalid one."""
    numbers = []
    for text in filter(None, map(str.strip, ids.split(","))):
        number = parse_number(text)
        if number is None or not 1 <= number <= MAX_ID:
            raise wrong_value("ids", text, "is not a job number: send numbers like 1,2,3")
        numbers.append(number)
    if not 1 <= len(numbers) <= MAX_JOBS:
        raise wrong_value("ids", f"{len(numbers)} jobs", f"send 1 to {MAX_JOBS} job numbers, like 1,2,3")
    return list(dict.fromkeys(numbers))
