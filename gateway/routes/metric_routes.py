"""Routes of a job's metrics: series for charts, all points for the Python client, and the names of all metrics."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from trainwire.gateway.documents.row_types import MetricPage, NamePage, PointPage, Series, SeriesPoint
from trainwire.gateway.http.problems import wrong_value
from trainwire.gateway.http.responses import described, described_problems, json_response, streamed
from trainwire.gateway.resources import Resources, job_or_404
from trainwire.gateway.routes.parameters import VIEWER, Attempt, JobId, Names, Rank, ResourcesDep, Seq
from trainwire.schemas.metric_download import MEDIA_TYPE, MetricBlock, encode_frame, split_names
from trainwire.schemas.non_finite import shown_floats
from trainwire.schemas.wire.validation import MAX_ID
from trainwire.stores.postgres.jobs.job_lookup import removed_rows
from trainwire.stores.rows.command_rows import metrics_before
from trainwire.stores.rows.metric_blocks import ABSENT, Column, Points
from trainwire.stores.rows.metric_names import names_within
from trainwire.stores.rows.metric_series import SeriesFilter, XAxis, XRange, read_series
from trainwire.stores.rows.packed_metrics import read_packed_metrics

router = APIRouter(tags=["metrics"], dependencies=VIEWER)

_FROM = "Only points whose first number is at least this, in the unit of `x`."
_TO = "Only points whose first number is at most this, in the unit of `x`."
MAX_NAMES = 50
"""Maximum number of metric names per request."""


@router.get("/jobs/{job_id}/metrics", responses=described(MetricPage, 404))
def metrics(
    *,
    resources: ResourcesDep,
    job_id: JobId,
    names: Names = [],  # noqa: B006
    after: Annotated[Seq, Query(description="Only rows after this `seq`.")] = 0,
    attempt: Attempt | None = None,
    rank: Rank | None = None,
    points: Annotated[int, Query(ge=4, le=20_000, description="Maximum points of a series, roughly.")] = 1000,
    x: Annotated[XAxis, Query(description="Unit of the first number of a point.")] = "step",
    first_x: Annotated[float | None, Query(alias="from", allow_inf_nan=False, description=_FROM)] = None,
    last_x: Annotated[float | None, Query(alias="to", allow_inf_nan=False, description=_TO)] = None,
) -> Response:
    """Return series of metric values: one for each metric, attempt and rank; without `names` of 50 metrics.

    A series with more than `points` points is downsampled: the lowest and the highest value of each interval are
    kept, so spikes remain visible. A part of a series (`from`, `to`) also has up to `points` points, so charts can
    zoom.
    """
    within = XRange(x=x, first=first_x, last=last_x) if (first_x, last_x) != (None, None) else None
    with resources.reading() as connection:
        last = job_or_404(connection, job_id).last_metric_seq
        wanted = wanted_names(names) or list(
            resources.metric_names.of(connection, job_id, last).ordered[:MAX_NAMES]
        )
        rows = SeriesFilter(
            job_id=job_id, names=wanted, last=last, after=after, attempt=attempt, rank=rank, within=within
        )
        series, is_downsampled = read_series(connection, rows, points)
    return json_response(
        MetricPage(
            series=[
                Series(name=name, attempt=of_attempt, rank=of_rank, points=shown_points(values, x))
                for (name, of_attempt, of_rank), values in series.items()
            ],
            last_seq=last,
            downsampled=is_downsampled,
        )
    )


@router.get("/jobs/{job_id}/metrics/names", responses=described(NamePage, 404))
def metric_names(
    resources: ResourcesDep,
    job_id: JobId,
    after: Annotated[str, Query(description="Only names after this one.")] = "",
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> Response:
    """Return the names of all metrics of a job in pages, including names that occur only in old rows."""
    with resources.reading() as connection:
        last = job_or_404(connection, job_id).last_metric_seq
        known = resources.metric_names.of(connection, job_id, last)
    names = known.ordered[bisect_right(known.ordered, after) :]
    items = names_within(names, limit)
    following = items[-1] if len(names) > len(items) else None
    return json_response(NamePage(items=items, next=following, complete=known.is_complete(last)))


@router.get("/jobs/{job_id}/metrics/rows", responses=described(PointPage, 404))
def metric_rows(
    resources: ResourcesDep,
    job_id: JobId,
    before: Annotated[Seq, Query(description="Only points before this `seq`.")] = MAX_ID,
    limit: Annotated[int, Query(ge=1, le=5000)] = 500,
) -> Response:
    """Return the newest points of a job with all their values; fewer than `limit` if they are large."""
    with resources.reading() as connection:
        job_or_404(connection, job_id)
        items = metrics_before(connection, job_id, before, limit)
        removed = removed_rows(connection, job_id)["metrics"]
    has_more = bool(items) and items[0].seq > removed + 1
    return json_response(PointPage(items=items, next=items[0].seq if has_more else None))


def wanted_names(given: list[str]) -> list[str]:
    """Return the metric names that a request gives; raise a `ProblemError` if there are too many."""
    names = split_names(given)
    if len(names) > MAX_NAMES:
        raise wrong_value("names", f"{len(names)} names", f"send at most {MAX_NAMES} names per request")
    return names


def shown_points(points: Points, x: XAxis) -> list[SeriesPoint]:
    """Convert points to the tuples in responses (`SeriesPoint`), whose first item is the value of the x axis."""
    steps, epochs = _without_absent(points.steps), _without_absent(points.epochs)
    times = [1000 * time for time in points.times]
    axis = {"step": steps, "epoch": epochs, "time": times}[x]
    return list(zip(axis, times, shown_floats(points.values), epochs, points.seqs, strict=True))


def _without_absent(column: Column) -> Sequence[int | None]:
    return [None if number == ABSENT else number for number in column] if ABSENT in column else column


@router.get(
    "/jobs/{job_id}/metrics/download",
    response_class=Response,
    responses={
        200: {
            "description": "All points of these metrics, as packed columns (docs/client.md).",
            "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
        },
        **described_problems(404),
    },
)
def download_metrics(resources: ResourcesDep, job_id: JobId, names: Names = []) -> Response:  # noqa: B006
    """Return all points of the metrics in `names` (by default of all) as packed columns, not downsampled."""
    with resources.reading() as connection:
        last = job_or_404(connection, job_id).last_metric_seq
        removed = removed_rows(connection, job_id)["metrics"]
    return streamed(_frames(resources, job_id, split_names(names), removed, last), MEDIA_TYPE)


def _frames(resources: Resources, job_id: int, names: Sequence[str], after: int, last: int) -> Iterator[bytes]:
    for block in read_packed_metrics(resources.engine, job_id, names, after, last):
        yield encode_frame(block)
    yield encode_frame(MetricBlock(rows=0))
