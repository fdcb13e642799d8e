"""A job's metrics as series for charts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from trainwire.gateway.documents.documents import MetricPage, NamePage, Series, SeriesPoint
from trainwire.gateway.http import openapi_examples as examples
from trainwire.gateway.http.answers import described, json_answer
from trainwire.gateway.http.problems import wrong_value
from trainwire.gateway.resources import known_job
from trainwire.gateway.routes.parameters import VIEWER, Attempt, Found, JobId, Names, Rank, Seq, split_names
from trainwire.stores.rows.metric_names import names_within
from trainwire.stores.rows.metric_series import SeriesFilter, SeriesValue, XAxis, XRange, read_series

router = APIRouter(tags=["metrics"], dependencies=VIEWER)

_FROM = "Only points whose first number is at least this: a step, an epoch, or nanoseconds since 1970."
_TO = "Only points whose first number is at most this."
MOST_NAMES = 50
"""In one answer: each costs Postgres a look at every row."""


@router.get("/jobs/{job_id}/metrics", responses=described(MetricPage, examples.METRIC_PAGE, 404))
def metrics(
    *,
    found: Found,
    job_id: JobId,
    names: Names = [],  # noqa: B006
    after: Annotated[Seq, Query(description="Only rows after this `seq`.")] = 0,
    attempt: Attempt | None = None,
    rank: Rank | None = None,
    points: Annotated[int, Query(ge=4, le=20_000, description="Most points of a series, about.")] = 1000,
    x: Annotated[XAxis, Query(description="What the first number of a point is.")] = "step",
    first_x: Annotated[float | None, Query(alias="from", allow_inf_nan=False, description=_FROM)] = None,
    last_x: Annotated[float | None, Query(alias="to", allow_inf_nan=False, description=_TO)] = None,
) -> Response:
    """Return series of values, each of one attempt and rank; without `names` of all metrics, 50 at most.

    A longer series is downsampled so that spikes survive: of every piece the lowest and the highest value. Part
    of a series (`from`, `to`) has as many points as all of it, or all that there are: so charts zoom.
    """
    within = XRange(x=x, first=first_x, last=last_x) if (first_x, last_x) != (None, None) else None
    with found.reading() as connection:
        last = known_job(connection, job_id).last_metric_seq
        wanted = wanted_names(names) or sorted(found.metric_names.of(connection, job_id, last).names)[:MOST_NAMES]
        rows = SeriesFilter(
            job_id=job_id, names=wanted, last=last, after=after, attempt=attempt, rank=rank, within=within
        )
        series, is_downsampled = read_series(connection, rows, points)
    return json_answer(
        MetricPage(
            series=[
                Series(name=name, attempt=of_attempt, rank=of_rank, points=shown_points(values, x))
                for (name, of_attempt, of_rank), values in series.items()
            ],
            last_seq=last,
            downsampled=is_downsampled,
        )
    )


@router.get("/jobs/{job_id}/metrics/names", responses=described(NamePage, examples.NAME_PAGE, 404))
def metric_names(
    found: Found,
    job_id: JobId,
    after: Annotated[str, Query(description="Only names after this one.")] = "",
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> Response:
    """Return the names of all metrics, page by page, also of those that occur in old rows only."""
    with found.reading() as connection:
        last = known_job(connection, job_id).last_metric_seq
        known = found.metric_names.of(connection, job_id, last)
    names = sorted(name for name in known.names if name > after)
    items = names_within(names, limit)
    following = items[-1] if len(names) > len(items) else None
    return json_answer(NamePage(items=items, next=following, complete=known.is_complete(last)))


def wanted_names(given: list[str]) -> list[str]:
    """Return the names of a request; a problem where they are too many."""
    names = split_names(given)
    if len(names) > MOST_NAMES:
        raise wrong_value("names", f"{len(names)} names", f"ask for at most {MOST_NAMES} at once")
    return names


def shown_points(points: Iterable[SeriesValue], x: XAxis) -> list[SeriesPoint]:
    """Return points as charts take them."""
    return [
        (
            point.step if x == "step" else point.ts if x == "time" else point.epoch,
            point.ts,
            point.value,
            point.epoch,
            point.seq,
        )
        for point in points
    ]
