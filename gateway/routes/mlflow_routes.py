"""Routes that read a job's run from MLflow."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query
from starlette.responses import Response

from trainwire.gateway.documents.response_types import document_from
from trainwire.gateway.http.problems import not_found
from trainwire.gateway.http.responses import described, json_response
from trainwire.gateway.resources import Resources, job_or_404
from trainwire.gateway.routes.parameters import (
    VIEWER,
    Attempt,
    JobId,
    Names,
    ResourcesDep,
    decode_cursor,
    encode_cursor,
    wrong_cursor,
)
from trainwire.schemas.decode_errors import DECODE_ERRORS
from trainwire.schemas.metric_download import split_names
from trainwire.schemas.non_finite import Number, shown_float
from trainwire.stores.mlflow.runs import (
    HistoryPlace,
    get_run,
    get_run_summary,
    read_page,
    run_id_in_mlflow,
    run_url,
)
from trainwire.stores.postgres.jobs.attempts import find_attempts

router = APIRouter(tags=["mlflow"], dependencies=VIEWER)

MAX_METRICS = 50
"""Maximum number of metrics in a summary; each one needs a request to MLflow."""
OfAttempt = Annotated[Attempt | None, Query(description="By default the newest attempt.")]


class MlflowPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One value of a metric in MLflow; `ts_ms` is in milliseconds since 1970."""

    ts_ms: int
    step: int
    value: Number


class MlflowMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """Points of metrics in MLflow, in order of time; `next` is the cursor of the following page.

    `more_metrics` is the number of metrics that are on later pages only.
    """

    run_id: str
    metrics: dict[str, list[MlflowPoint]]
    more_metrics: int
    next: str | None


class MlflowNumbers(msgspec.Struct, frozen=True, kw_only=True):
    """Number of points of one metric, and its last, lowest and highest value."""

    points: int
    last: Number
    lowest: Number
    highest: Number


class MlflowSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The job's run in MLflow, without points; `is_mirror` is true if trainwire's workers created the run."""

    run_id: str
    url: str
    name: str
    experiment: str
    status: str
    is_mirror: bool
    is_deleted: bool
    started_at: datetime | None
    ended_at: datetime | None
    params: dict[str, str]
    metrics: dict[str, MlflowNumbers]
    more_metrics: int


@router.get("/jobs/{job_id}/mlflow/metrics", responses=described(MlflowMetrics, 404, 502))
def mlflow_metrics(
    *,
    resources: ResourcesDep,
    job_id: JobId,
    names: Names = [],  # noqa: B006
    attempt: OfAttempt = None,
    limit: Annotated[int, Query(ge=1, le=25_000, description="Maximum points of all metrics together.")] = 1000,
    cursor: Annotated[str | None, Query(description="`next` of a page with the same parameters.")] = None,
) -> Response:
    """Return points of the metrics in `names` (by default of all) from MLflow, one metric after the other."""
    run_id = _run_id(resources, job_id, attempt)
    run = get_run(resources.mlflow, run_id)
    if run is None:
        raise not_found(f"run {run_id} does not exist in MLflow")
    wanted = [name for name in split_names(names) if name in run.metrics] if names else sorted(run.metrics)
    place = None if cursor is None else _place(cursor, wanted)
    page = read_page(resources.mlflow, run_id, wanted, limit, place)
    metrics = {
        name: [MlflowPoint(ts_ms=point.ts_ms, step=point.step, value=shown_float(point.value)) for point in points]
        for name, points in page.metrics.items()
    }
    return json_response(
        MlflowMetrics(run_id=run_id, metrics=metrics, more_metrics=page.more_metrics, next=_cursor(page.next))
    )


_decode_place = msgspec.json.Decoder(HistoryPlace).decode


def _cursor(place: HistoryPlace | None) -> str | None:
    return None if place is None else encode_cursor(msgspec.json.encode(place))


def _place(cursor: str, wanted: list[str]) -> HistoryPlace:
    try:
        place = _decode_place(decode_cursor(cursor))
    except (*DECODE_ERRORS, ValueError) as exc:
        raise wrong_cursor(cursor) from exc
    if place.name not in wanted:
        raise wrong_cursor(cursor)
    return place


@router.get("/jobs/{job_id}/mlflow/summary", responses=described(MlflowSummary, 404, 502))
def mlflow_summary(resources: ResourcesDep, job_id: JobId, attempt: OfAttempt = None) -> Response:
    """Return a job's run in MLflow, with summaries of at most 50 metrics instead of their points."""
    run_id = _run_id(resources, job_id, attempt)
    summary = get_run_summary(resources.mlflow, run_id, MAX_METRICS)
    if summary is None:
        raise not_found(f"run {run_id} does not exist in MLflow")
    metrics = {
        name: document_from(
            MlflowNumbers,
            metric,
            last=shown_float(metric.last),
            lowest=shown_float(metric.lowest),
            highest=shown_float(metric.highest),
        )
        for name, metric in summary.metrics.items()
    }
    return json_response(
        document_from(
            MlflowSummary,
            summary.run,
            url=run_url(resources.settings.mlflow_shown_at or "", summary.run),
            experiment=summary.experiment,
            metrics=metrics,
            more_metrics=summary.more_metrics,
        )
    )


def _run_id(resources: Resources, job_id: int, attempt: int | None) -> str:
    """Return the MLflow run id of an attempt, by default the newest; raise a `ProblemError` if there is none."""
    api = resources.mlflow
    with resources.reading() as connection:
        wanted = job_or_404(connection, job_id).attempt if attempt is None else attempt
        known = [row for row in find_attempts(connection, job_id) if row.attempt == wanted]
    if not known:
        raise not_found(f"job {job_id} has no attempt {wanted}")
    run_id = run_id_in_mlflow(api, job_id, known[0])
    if run_id is None:
        raise not_found(f"job {job_id} has no run in MLflow yet")
    return run_id
