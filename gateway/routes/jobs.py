"""Jobs: the list, and one of them."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from trainwire.gateway.documents.documents import (
    CompletenessReport,
    Deliveries,
    DeliveryItem,
    Gap,
    JobDetail,
    JobPage,
    Loss,
    RankGap,
)
from trainwire.gateway.documents.job_documents import job_detail, job_items
from trainwire.gateway.http import openapi_examples as examples
from trainwire.gateway.http.answers import described, json_answer
from trainwire.gateway.http.problems import unknown_job, wrong_value
from trainwire.gateway.resources import known_job
from trainwire.gateway.routes.parameters import VIEWER, Found, JobId, Text
from trainwire.schemas.messages import Status
from trainwire.schemas.sinks import SINKS
from trainwire.schemas.validation import MAX_ID
from trainwire.stores.postgres.completeness import find_completeness
from trainwire.stores.postgres.deliveries import JobDelivery, SinkHealth, job_deliveries, shown_delivery
from trainwire.stores.postgres.jobs import Job, JobFilter, JobPlace, find_page

router = APIRouter(tags=["jobs"], dependencies=VIEWER)


@router.get("/jobs", responses=described(JobPage, examples.JOB_PAGE))
def jobs(
    *,
    found: Found,
    status: Annotated[list[Status], Query(description="Only jobs that stand so; may be repeated.")] = [],  # noqa: B006
    name: Annotated[Text | None, Query(description="Only jobs whose name contains this.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(description="`next` of the page before.")] = None,
) -> Response:
    """List jobs, the newest first."""
    wanted = JobFilter(statuses=status, name=name, after=None if cursor is None else _place(cursor))
    with found.reading() as connection:
        page = find_page(connection, wanted, limit + 1)
        items = job_items(connection, page[:limit])
    return json_answer(JobPage(items=items, next=_cursor(page[limit - 1]) if len(page) > limit else None))


@router.get("/jobs/{job_id}", responses=described(JobDetail, examples.JOB_DETAIL, 404))
def job(found: Found, job_id: JobId) -> Response:
    """Show one job with its parameters, attempts and the names of its metrics."""
    with found.reading() as connection:
        detail = job_detail(connection, job_id, found.metric_names, found.settings.mlflow_shown_at)
    if detail is None:
        raise unknown_job(job_id)
    return json_answer(detail)


@router.get("/jobs/{job_id}/completeness", responses=described(CompletenessReport, examples.COMPLETENESS, 404))
def completeness(found: Found, job_id: JobId) -> Response:
    """Show whether all messages have arrived, and which have not."""
    with found.reading() as connection:
        sum_of_all = find_completeness(connection, known_job(connection, job_id))
    gaps = [Gap(source=row.source, kind=row.kind, ranges=list(row.gaps)) for row in sum_of_all.gaps]
    losses = [Loss(source=row.source, kind=row.kind, ranges=list(row.lost)) for row in sum_of_all.losses]
    return json_answer(
        CompletenessReport(
            state=sum_of_all.state,
            status=sum_of_all.status,
            line=sum_of_all.line,
            produced=sum_of_all.produced,
            stored=sum_of_all.stored,
            dead_lettered=sum_of_all.dead_lettered,
            missing=sum_of_all.missing,
            lost=dict(sum_of_all.lost_by_reason),
            dropped=sum_of_all.dropped,
            gaps=gaps,
            losses=losses,
            open_sources=list(sum_of_all.open_sources),
            silent_sources=list(sum_of_all.silent_sources),
            absent_ranks=[
                RankGap(attempt=ranks.attempt, world_size=ranks.world_size, ranges=list(ranks.ranges))
                for ranks in sum_of_all.absent_ranks
            ],
        )
    )


@router.get("/jobs/{job_id}/deliveries", responses=described(Deliveries, examples.DELIVERIES, 404))
def deliveries(found: Found, job_id: JobId) -> Response:
    """Return how many of the job's rows each sink has confirmed, and why not more."""
    with found.reading() as connection:
        known_job(connection, job_id)
        sinks = job_deliveries(connection, job_id)
    return json_answer(Deliveries(items=[_delivery(*pair) for pair in sinks.values()]))


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
    return base64.urlsafe_b64encode(f"{last.created_at.isoformat()}|{last.id}".encode()).decode().rstrip("=")


def _place(cursor: str) -> JobPlace:
    """Read a cursor; a problem where it is none of ours."""
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        at, _, job_id = base64.b64decode(padded, altchars=b"-_", validate=True).decode().partition("|")
        place = JobPlace(datetime.fromisoformat(at), int(job_id))
    except (ValueError, binascii.Error) as exc:
        raise wrong_value("cursor", cursor, "is no `next` of a page") from exc
    if place.created_at.tzinfo is None or not 0 <= place.job_id <= MAX_ID:
        raise wrong_value("cursor", cursor, "is no `next` of a page")
    return place
