"""What MLflow has of a job."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query
from starlette.responses import Response

from trainwire.gateway.http import openapi_examples as examples
from trainwire.gateway.http.answers import described, json_answer
from trainwire.gateway.http.problems import not_there, wrong_value
from trainwire.gateway.resources import Resources, known_job
from trainwire.gateway.routes.parameters import VIEWER, Attempt, Found, JobId, Names, split_names
from trainwire.schemas.non_finite import Number, shown_float
from trainwire.stores.mlflow.runs import (
    HistoryPlace,
    get_run,
    get_run_summary,
    read_page,
    run_id_in_mlflow,
    run_url,
)
from trainwire.stores.postgres.jobs import find_attempts

router = APIRouter(tags=["mlflow"], dependencies=VIEWER)

MOST_METRICS = 50
"""Each is a request to MLflow."""
OfAttempt = Annotated[Attempt | None, Query(description="Not the newest attempt but this one.")]


class MlflowPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One value; `ts_ms` in milliseconds since 1970."""

    ts_ms: int
    step: int
    value: Number


class MlflowMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """Points of metrics in MLflow, as it orders them: by time; `next` is the cursor of the following page.

    `more_metrics` is how many metrics come on later pages only.
    """

    run_id: str
    metrics: dict[str, list[MlflowPoint]]
    more_metrics: int
    next: str | None


class MlflowNumbers(msgspec.Struct, frozen=True, kw_only=True):
    """One metric in short."""

    points: int
    last: Number
    lowest: Number
    highest: Number


class MlflowSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The job's run in MLflow in short; `is_mirror`: workers made it."""

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


@router.get("/jobs/{job_id}/mlflow/metrics", responses=described(MlflowMetrics, examples.MLFLOW_METRICS, 404, 502))
def mlflow_metrics(
    *,
    found: Found,
    job_id: JobId,
    names: Names = [],  # noqa: B006
    attempt: OfAttempt = None,
    limit: Annotated[int, Query(ge=1, le=25_000, description="Most points, of all metrics together.")] = 1000,
    cursor: Annotated[str | None, Query(description="`next` of the page before, asked as that one was.")] = None,
) -> Response:
    """Return the points that MLflow has of these metrics, or of all: one metric after the other."""
    run_id = _run_id(found, job_id, attempt)
    run = get_run(found.mlflow, run_id)
    if run is None:
        raise not_there(f"MLflow has no run {run_id}")
    wanted = [name for name in split_names(names) if name in run.metrics] if names else sorted(run.metrics)
    place = None if cursor is None else _place(cursor, wanted)
    page = read_page(found.mlflow, run_id, wanted, limit, place)
    metrics = {
        name: [MlflowPoint(ts_ms=point.ts_ms, step=point.step, value=shown_float(point.value)) for point in points]
        for name, points in page.metrics.items()
    }
    return json_answer(
        MlflowMetrics(run_id=run_id, metrics=metrics, more_metrics=page.more_metrics, next=_cursor(page.next))
    )


_decode_place = msgspec.json.Decoder(HistoryPlace).decode


def _cursor(place: HistoryPlace | None) -> str | None:
    if place is None:
        return None
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def _place(cursor: str, wanted: list[str]) -> HistoryPlace:
    """Read a cursor; a problem where it is none of ours, or of other metrics."""
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        data = base64.b64decode(padded, altchars=b"-_", validate=True)
        place = _decode_place(data)
    except (ValueError, msgspec.MsgspecError) as exc:
        raise wrong_value("cursor", cursor, "is no `next` of a page") from exc
    if place.name not in wanted:
        raise wrong_value("cursor", cursor, "is no `next` of a page with these names")
    return place


@router.get("/jobs/{job_id}/mlflow/summary", responses=described(MlflowSummary, examples.MLFLOW_SUMMARY, 404, 502))
def mlflow_summary(found: Found, job_id: JobId, attempt: OfAttempt = None) -> Response:
    """Return the job's run in MLflow with its metrics in short."""
    run_id = _run_id(found, job_id, attempt)
    summary = get_run_summary(found.mlflow, run_id, MOST_METRICS)
    if summary is None:
        raise not_there(f"MLflow has no run {run_id}")
    run = summary.run
    numbers = {
        name: MlflowNumbers(
            points=metric.points,
            last=shown_float(metric.last),
            lowest=shown_float(metric.lowest),
            highest=shown_float(metric.highest),
        )
        for name, metric in summary.metrics.items()
    }
    copied: dict[str, Any] = {
        name: getattr(run, name)
        for name in ("run_id", "name", "status", "is_mirror", "is_deleted", "started_at", "ended_at", "params")
    }
    uri = found.settings.mlflow_shown_at or ""
    return json_answer(
        MlflowSummary(
            url=run_url(uri, run),
            experiment=summary.experiment,
            metrics=numbers,
            more_metrics=summary.more_metrics,
            **copied,
        )
    )


def _run_id(found: Resources, job_id: int, attempt: int | None) -> str:
    """Return the run of an attempt, the newest where none is said; a problem where there is none."""
    api = found.mlflow
    with found.reading() as connection:
        wanted = known_job(connection, job_id).attempt if attempt is None else attempt
        known = [row for row in find_attempts(connection, job_id) if row.attempt == wanted]
    if not known:
        raise not_there(f"job {job_id} has no attempt {wanted}")
    run_id = run_id_in_mlflow(api, job_id, known[0])
    if run_id is None:
        raise not_there(f"MLflow has no run of job {job_id} yet")
    return run_id
