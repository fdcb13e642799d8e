"""Route to ask the trainers of a job to stop."""

from __future__ import annotations

from typing import Annotated

import structlog
from fastapi import APIRouter, Body, Depends
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection, select
from starlette.responses import Response

from trainwire.gateway.auth.authorization import Identity, require
from trainwire.gateway.documents.job_types import StopReceipt
from trainwire.gateway.documents.response_types import document_from
from trainwire.gateway.http.problems import ProblemError, problem, unknown_job, wrong_value
from trainwire.gateway.http.responses import described, json_response
from trainwire.gateway.routes.parameters import JobId, ResourcesDep
from trainwire.schemas.tables import gateway_tokens
from trainwire.stores.postgres.jobs.stop_requests import (
    AlreadyEnded,
    UnknownJob,
    request_stop,
)
from trainwire.stores.postgres.jobs.user_texts import WrongText

log = structlog.get_logger("trainwire.gateway.stops")
router = APIRouter(tags=["jobs"])
ANONYMOUS = "a user of the page"


class NewStop(BaseModel):
    """A request to stop a job, with its reason; `by` is the name of the user who asks.

    A gateway with tokens ignores `by`, and uses the name of the token instead.
    """

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"reason": "the loss is NaN"}]})

    reason: str = ""
    by: str = ""


@router.post(
    "/jobs/{job_id}/stop", status_code=202, responses=described(StopReceipt, 400, 404, 409, 413, status=202)
)
def stop_job(
    resources: ResourcesDep,
    identity: Annotated[Identity, Depends(require("admin"))],
    job_id: JobId,
    wanted: Annotated[NewStop, Body(default_factory=NewStop)],
) -> Response:
    """Ask the trainers of the job's current attempt to stop.

    They receive the request with the response to a heartbeat or message, now or when they are reachable again, and
    end by themselves (docs/stop.md). A repeated request changes nothing; the response contains the first one.
    """
    try:
        with resources.engine.begin() as connection:
            by = _name_of(connection, identity) or wanted.by.strip() or ANONYMOUS
            request = request_stop(connection, job_id, by, wanted.reason)
    except UnknownJob as exc:
        raise unknown_job(job_id) from exc
    except AlreadyEnded as exc:
        raise ProblemError(problem(409, "job-ended", "The job has ended", str(exc))) from exc
    except WrongText as exc:
        raise wrong_value(exc.field, exc.value, exc.detail) from exc
    log.info("job.stop_requested", job_id=job_id, by=request.requested_by)
    return json_response(document_from(StopReceipt, request), 202)


def _name_of(connection: Connection, identity: Identity) -> str | None:
    """Return the name of the request's token; None at a gateway without tokens."""
    tokens = gateway_tokens.c
    return connection.execute(select(tokens.name).where(tokens.id == identity.token_id)).scalar_one_or_none()
