"""Routes of jobs: the list, jobs by name, one job, its completeness and its deliveries."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Final, TypeVar

import msgspec
from fastapi import APIRouter, Query
from starlette.responses import Response

from trainwire.gateway.documents.job_documents import job_detail, job_items
from trainwire.gateway.documents.job_types import (
    FieldNames,
    JobDetail,
    JobGroups,
    JobPage,
    JobReference,
    JobReferences,
    Provenance,
)
from trainwire.gateway.documents.response_types import (
    CompletenessReport,
    Deliveries,
    DeliveryItem,
    document_from,
)
from trainwire.gateway.http.problems import unknown_job, wrong_value
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
from trainwire.schemas.filters.job_filter import parse_fields, parse_filter, parse_sort
from trainwire.schemas.filters.tokens import WrongFilter
from trainwire.schemas.sinks import SINKS
from trainwire.schemas.wire.messages import Status
from trainwire.schemas.wire.validation import MAX_ID
from trainwire.stores.postgres.completeness import find_completeness
from trainwire.stores.postgres.deliveries import JobDelivery, SinkHealth, job_deliveries, shown_delivery
from trainwire.stores.postgres.jobs.attempts import find_provenance
from trainwire.stores.postgres.jobs.job_pages import (
    JobPlace,
    JobQuery,
    count_jobs,
    find_groups,
    find_places,
    place_fields,
    place_from,
    read_columns,
    read_jobs,
)
from trainwire.stores.postgres.jobs.job_references import find_referenced
from trainwire.stores.rows.field_names import field_names

router = APIRouter(tags=["jobs"], dependencies=VIEWER)


P = TypeVar("P")
MAX_COLUMNS: Final = 50
MAX_GROUPS: Final = 1000
FILTER_EXAMPLE: Final = 'status = failed and params.lr < 0.01 and tags.dataset = "coco"'


Statuses = Annotated[list[Status], Query(description="Only jobs with this status; may be repeated.")]
Search = Annotated[
    Text | None,
    Query(description="Only jobs with this in name or tags, or at the beginning or end of the number."),
]
Filter = Annotated[
    str | None,
    Query(description="Only jobs for which this is true (docs/filters.md).", examples=[FILTER_EXAMPLE]),
]
Archived = Annotated[bool, Query(description="With jobs that are archived.")]


@router.get("/jobs", responses=described(JobPage))
def jobs(
    *,
    resources: ResourcesDep,
    status: Statuses = [],  # noqa: B006
    name: Annotated[Text | None, Query(description="Only jobs whose name contains this.")] = None,
    search: Search = None,
    filter: Filter = None,  # noqa: A002 - the parameter's name in HTTP
    sort: Annotated[
        str | None,
        Query(description="A field, with `-` for descending; default: newest first.", examples=["-metrics.loss"]),
    ] = None,
    columns: Annotated[
        str,
        Query(description="Fields whose values are returned, separated by commas.", examples=["params.lr,ranks"]),
    ] = "",
    archived: Archived = False,
    details: Annotated[bool, Query(description="With the parameters and tags of each job.")] = False,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(description="`next` of the page before.")] = None,
) -> Response:
    """Return a page of jobs, the newest first unless `sort` is given; jobs without the sorted field come last."""
    place, now = (None, datetime.now(UTC)) if cursor is None else _place(cursor, sort)
    query = JobQuery(
        where=_parsed("filter", filter or "", lambda text: parse_filter(text, now)),
        statuses=status,
        name=name,
        search=search,
        sort=_parsed("sort", sort, parse_sort) if sort else None,
        after=place,
        with_archived=archived,
        now=now,
    )
    fields = _parsed("columns", columns, parse_fields)
    if len(fields) > MAX_COLUMNS:
        raise wrong_value("columns", f"{len(fields)} fields", f"send at most {MAX_COLUMNS}")
    with resources.reading() as connection:
        places = find_places(connection, query, limit + 1)
        ids = [place.job_id for place in places[:limit]]
        values = read_columns(connection, ids, fields, now)
        items = job_items(connection, read_jobs(connection, ids), values, has_details=details)
        total = count_jobs(connection, query) if cursor is None else None
    following = _cursor(places[limit - 1], sort, now) if len(places) > limit else None
    return json_response(JobPage(items=items, next=following, total=total))


@router.get("/jobs/groups", responses=described(JobGroups))
def groups(
    *,
    resources: ResourcesDep,
    by: Annotated[str, Query(description="A parameter, tag or other field of jobs.", examples=["project"])],
    status: Statuses = [],  # noqa: B006
    search: Search = None,
    filter: Filter = None,  # noqa: A002 - the parameter's name in HTTP
    archived: Archived = False,
) -> Response:
    """Return the number of jobs with each value of a field, for at most 1,000 values.

    The value with the newest job comes first.
    """
    field, _ = _parsed("by", by, parse_sort)
    if by.lstrip().startswith("-") or field.space == "metrics" or field.type in ("time", "duration"):
        raise wrong_value("by", by, "group by a parameter, a tag or a field with few values, for example project")
    where = _parsed("filter", filter or "", parse_filter)
    query = JobQuery(where=where, statuses=status, search=search, with_archived=archived)
    with resources.reading() as connection:
        found = find_groups(connection, query, field, MAX_GROUPS + 1)
    return json_response(JobGroups(items=found[:MAX_GROUPS], complete=len(found) <= MAX_GROUPS))


@router.get("/jobs/fields", responses=described(FieldNames))
def fields(resources: ResourcesDep) -> Response:
    """Return the fields that filters, sort orders and columns of jobs can use."""
    with resources.reading() as connection:
        return json_response(FieldNames(**field_names(connection)))


# Before /jobs/{job_id}, which `resolve` would match.
@router.get("/jobs/resolve", responses=described(JobReferences))
def resolve(
    resources: ResourcesDep,
    reference: Annotated[
        Text,
        Query(description="A number, a name, the beginning of either, the last digits of a number, or `last`."),
    ],
) -> Response:
    """Return the newest 10 jobs that match `reference`, and the number of all matching jobs."""
    with resources.reading() as connection:
        found = find_referenced(connection, reference)
    items = [document_from(JobReference, job) for job in found.jobs]
    return json_response(document_from(JobReferences, found, items=items))


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
    """Return the provenance of an attempt: its command, code and machine; without items if it is unknown."""
    with resources.reading() as connection:
        wanted = job_or_404(connection, job_id).attempt if attempt is None else attempt
        return json_response(Provenance(attempt=wanted, items=find_provenance(connection, job_id, wanted)))


@router.get("/jobs/{job_id}/completeness", responses=described(CompletenessReport, 404))
def completeness(resources: ResourcesDep, job_id: JobId) -> Response:
    """Return the counts of a job's messages, and the numbers of the missing and lost ones."""
    with resources.reading() as connection:
        found = find_completeness(connection, job_or_404(connection, job_id))
    return json_response(msgspec.convert(found.document, CompletenessReport))


@router.get("/jobs/{job_id}/deliveries", responses=described(Deliveries, 404))
def deliveries(resources: ResourcesDep, job_id: JobId) -> Response:
    """Return, for each sink in use, how many of the job's rows it has confirmed, and its last error."""
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
        delivery=job,
        health=health,
    )


def _cursor(last: JobPlace, sort: str | None, now: datetime) -> str:
    return encode_cursor(json.dumps([sort, now.isoformat(), place_fields(last)]).encode())


def _place(cursor: str, sort: str | None) -> tuple[JobPlace, datetime]:
    """Decode a page cursor: return the position of the previous page's last job, and the time of the first page.

    Raises a `ProblemError` if the cursor is invalid, or belongs to another sort order.
    """
    try:
        of_sort, now, place = json.loads(decode_cursor(cursor))
        if of_sort != sort:
            raise wrong_cursor(cursor)
        at = datetime.fromisoformat(now)
        found = place_from(place, parse_sort(sort) if sort else None)
    except (ValueError, TypeError, ArithmeticError, RecursionError) as exc:
        raise wrong_cursor(cursor) from exc
    if at.tzinfo is None or not 0 <= found.job_id <= MAX_ID:
        raise wrong_cursor(cursor)
    return found, at


def _parsed(field: str, text: str, parse: Callable[[str], P]) -> P:
    try:
        return parse(text)
    except WrongFilter as exc:
        raise wrong_value(field, text, str(exc)) from exc
