"""The route that lists alerts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from trainwire.gateway.documents.response_types import AlertPage
from trainwire.gateway.http.responses import described, json_response
from trainwire.gateway.routes.parameters import VIEWER, ResourcesDep
from trainwire.schemas.wire.validation import MAX_ID
from trainwire.stores.postgres.alerts import AlertState, destination_outages, find_alerts

router = APIRouter(tags=["alerts"], dependencies=VIEWER)


@router.get("/alerts", responses=described(AlertPage))
def alerts(
    *,
    resources: ResourcesDep,
    job: Annotated[int | None, Query(ge=1, le=MAX_ID, description="Only alerts of this job.")] = None,
    state: Annotated[list[AlertState], Query(description="Only alerts in this state; may be repeated.")] = [],  # noqa: B006
    before: Annotated[int | None, Query(ge=1, le=MAX_ID, description="`next` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """Return alerts, the newest first, with their state and last error, and destinations with an outage."""
    with resources.reading() as connection:
        found = find_alerts(connection, job_id=job, states=state, before=before, limit=limit + 1)
        outages = destination_outages(connection)
    items = found[:limit]
    return json_response(
        AlertPage(items=items, next=items[-1].id if len(found) > limit else None, outages=outages)
    )
