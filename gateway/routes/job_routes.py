"""Routes of jobs: the list, one job, its completeness and its deliveries."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from trainwire.gateway.documents.job_documents import job_detail, job_items
from trainwire.gateway.documents.response_types import (
    CompletenessReport,
    Deliveries,
    DeliveryItem,
    Gap,
    JobDetail,
    JobPage,
    Loss,
    Provenance,
    RankGap,
    document_from,
)
from trainwire.gateway.http.problems import unknown_job
from trainwire.gateway.http.responses import described, json_response
from trainwire.gateway.resources import job_or_404
from trainwire.gateway.routes.parameters import (
    VIEWER,
    Attempt,
    JobId,
    ResourcesDep,
    Text,
    decode_cursor,
    encode_cursor,
    wrong_cursor,
)
from trainwire.schemas.messages import Status
from trainwire.schemas.sinks import SINKS
from trainwire.schemas.validation import MAX_ID
from trainwire.stores.postgres.attempts import find_provenance
from trainwire.stores.postgres.completeness import find_completeness
from trainwire.stores.postgres.deliveries import JobDelivery, SinkHealth, job_deliveries, shown_delivery
from trainwire.stores.postgres.jobs import Job, JobFilter, JobPlace, find_page

router = APIRouter(tags=["jobs"], dependencies=VIEWER)


@router.get("/jobs", responses=described(JobPage))
def jobs(
    *,
    resources: ResourcesDep,
    status: Annotated[list[Status], Query(description="Only jobs with this status; may be repeated.")] = [],  # noqa: B006
    name: Annotated[Text | None, Query(description="Only jobs whose name contains this.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(description="`next` of the page before.")] = None,
) -> Response:
    """Return jobs, the newest first."""
    wanted = JobFilter(statuses=status, name=name, after=None if cursor is None else _place(cursor))
    with resources.reading() as connection:
        page = find_page(connection, wanted, limit + 1)
        items = job_items(connection, page[:limit])
    return json_response(JobPage(items=items, next=_cursor(page[limit - 1]) if len(page) > limit else None))


@router.get("/jobs/{job_id}", responses=described(JobDetail, 404))
def job(resources: ResourcesDep, job_id: JobId) -> Response:
    """Return one job with its parameters, attempts and names of metrics."""
    with resources.reading() as connection:
        detail = job_detail(connection, job_id, resources.metric_names, resources.settings.mlflow_shown_at)
    if detail is None:
        raise unknown_job(job_id)
    return json_response(detail)


@router.get("/jobs/{job_id}/provenance", responses=described(Provenance, 404))
def provenance(
    resources: ResourcesDep,
    job_id: JobId,
    attempt: Annotated[Attempt | None, Query(description="Default: the newest.")] = None,
) -> Response:
    """Return the command, code and machine of an attempt."""
    with resources.reading() as connection:
        wanted = job_or_404(connection, job_id).attempt if attempt is None else attempt
        return json_response(Provenance(attempt=wanted, items=find_provenance(connection, job_id, wanted)))


@router.get("/jobs/{job_id}/completeness", responses=described(CompletenessReport, 404))
def completeness(resources: ResourcesDep, job_id: JobId) -> Response:
    """Return whether all messages of a job are stored, and which are not."""
    with resources.reading() as connection:
        found = find_completeness(connection, job_or_404(connection, job_id))
    return json_response(
        document_from(
            CompletenessReport,
            found,
            lost=dict(found.lost_by_reason),
            gaps=[Gap(source=row.source, kind=row.kind, ranges=list(row.gaps)) for row in found.gaps],
            losses=[Loss(source=row.source, kind=row.kind, ranges=list(row.lost)) for row in found.losses],
            absent_ranks=[document_from(RankGap, ranks) for ranks in found.absent_ranks],
        )
    )


@router.get("/jobs/{job_id}/deliveries", responses=described(Deliveries, 404))
def deliveries(resources: ResourcesDep, job_id: JobId) -> Response:
    """Return how many of the job's rows each sink has confirmed, and the errors of the others."""
    with resources.reading() as connection:
        job_or_404(connection, job_id)
        sinks = job_deliveries(connection, job_id)
    return json_response(Deliveries(items=[_delivery(*pair) for pair in sinks.values()]))


def _delivery(job: JobDelivery, health: SinkHealth) -> DeliveryItem:
    return DeliveryItem(
        sink=health.sink,
        title=SINKS[health.sink].title,
        confirmed_seq=job.confirmed_seq,
        behind_rows=job.rows_behind,
        behind_s=job.oldest_age_s,
        dead_lettered=job.dead_lettered,
        last_error=job.last_error or health.last_error,
        next_probe_at=job.next_attempt_at or health.next_attempt_at,
        is_down=health.answers is False,
        words=shown_delivery(job, health, lambda at: f"{at:%Y-%m-%d %H:%M:%S} UTC"),
    )


def _cursor(last: Job) -> str:
    return encode_cursor(f"{last.created_at.isoformat()}|{last.id}".encode())


def _place(cursor: str) -> JobPlace:
    try:
        at, _, job_id = decode_cursor(cursor).decode().partition("|")
        place = JobPlace(datetime.fromisoformat(at), int(job_id))
    except ValueError as exc:
        raise wrong_cursor(cursor) from exc
    if place.created_at.tzinfo is None or not 0 <= place.job_id <= MAX_ID:
        raise wrong_cursor(cursor)
    return place
