"""Several jobs side by side."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy import Connection
from starlette.responses import Response

from trainwire.gateway.documents.documents import Comparison, JobSeries
from trainwire.gateway.documents.job_documents import job_items
from trainwire.gateway.http import openapi_examples as examples
from trainwire.gateway.http.answers import described, json_answer
from trainwire.gateway.http.problems import wrong_value
from trainwire.gateway.resources import Resources, known_job
from trainwire.gateway.routes.metrics import shown_points, wanted_names
from trainwire.gateway.routes.parameters import VIEWER, Found, Names
from trainwire.schemas.validation import MAX_ID
from trainwire.stores.postgres.jobs import Job
from trainwire.stores.rows.metric_series import MOST_POINTS, SeriesFilter, XAxis, read_series

router = APIRouter(tags=["jobs"], dependencies=VIEWER)
MOST_JOBS = 20


@router.get("/jobs/compare", responses=described(Comparison, examples.COMPARISON, 404))
def compare(
    found: Found,
    ids: Annotated[
        str, Query(max_length=1000, description="Numbers of jobs, separated by commas.", examples=["1,2"])
    ],
    names: Names = [],  # noqa: B006
    points: Annotated[int, Query(ge=4, le=5000, description="Most points of a series, about.")] = 500,
    x: Annotated[XAxis, Query(description="What the first number of a point is.")] = "step",
) -> Response:
    """Return jobs with series of their newest attempts; without `names`, of metrics that all of them have."""
    with found.reading() as connection:
        jobs = [known_job(connection, job_id) for job_id in _numbers(ids)]
        wanted = wanted_names(names) or _common_names(found, connection, jobs)
        share = MOST_POINTS // len(jobs)
        series = [
            each for job in jobs for each in _series(connection, job, wanted, x, points=points, of_all=share)
        ]
        items = job_items(connection, jobs)
    return json_answer(Comparison(jobs=items, series=series))


def _series(
    connection: Connection, job: Job, names: list[str], x: XAxis, *, points: int, of_all: int
) -> list[JobSeries]:
    rows = SeriesFilter(job_id=job.id, names=names, last=job.last_metric_seq, attempt=job.attempt)
    found, _ = read_series(connection, rows, points, of_all)
    return [
        JobSeries(job_id=job.id, name=name, attempt=attempt, points=shown_points(values, x))
        for (name, attempt, _), values in found.items()
    ]


def _common_names(found: Resources, connection: Connection, jobs: list[Job]) -> list[str]:
    of_each = [found.metric_names.of(connection, job.id, job.last_metric_seq) for job in jobs]
    return sorted(frozenset.intersection(*(known.names for known in of_each)))[:10]


def _numbers(ids: str) -> list[int]:
    """Return the numbers of a list; a problem that names what is none."""
    said = [text.strip() for text in ids.split(",") if text.strip()]
    for text in said:
        if not (text.isascii() and text.isdecimal() and len(text) < 20 and 1 <= int(text) <= MAX_ID):
            raise wrong_value("ids", text, "is no number of a job: say them like 1,2,3")
    if not 1 <= len(said) <= MOST_JOBS:
        raise wrong_value("ids", f"{len(said)} jobs", f"say 1 to {MOST_JOBS} jobs, like 1,2,3")
    return list(dict.fromkeys(map(int, said)))
