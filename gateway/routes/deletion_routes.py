"""Routes to delete a job (for admins): plan, deletion, progress, and reuse of the number."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import structlog
from fastapi import APIRouter, Depends, Query
from pydantic import Field, create_model
from starlette.responses import Response

from trainwire.gateway.auth.authorization import Identity, require
from trainwire.gateway.documents.response_types import DeletionReport, document_from
from trainwire.gateway.http.problems import not_found, unknown_job
from trainwire.gateway.http.responses import described, described_problems, json_response
from trainwire.gateway.resources import Resources
from trainwire.gateway.routes.parameters import VIEWER, JobId, ResourcesDep, Text
from trainwire.schemas.sinks import SINKS
from trainwire.stores.postgres.deletion import (
    Choice,
    Deletion,
    NoSuchJob,
    find_deletion,
    forget_acks,
    forget_deletion,
    plan_or_deletion,
    start_deletion,
)
from trainwire.stores.postgres.deletion_plan import DeletionPlan

log = structlog.get_logger("trainwire.gateway.deletion")
router = APIRouter(tags=["deletion"])

KeptSinks: TypeAlias = frozenset[str]
_flags: Any = {
    f"keep_{sink.name}": (bool, Field(False, description=f"Keep its {sink.copies} in {sink.title}."))
    for sink in SINKS.values()
}
_Keep: Any = create_model("Keep", **_flags)
Admin = Annotated[Identity, Depends(require("admin"))]
_RESPONSES: Any = {
    **described(DeletionReport, 404, 409),
    **described(DeletionReport, 404, 409, status=202),
}


def _kept(wanted: Annotated[_Keep, Query()]) -> KeptSinks:
    return frozenset(name for name in SINKS if getattr(wanted, f"keep_{name}"))


@router.delete("/jobs/{job_id}", status_code=202, responses=_RESPONSES)
def delete_job(
    *,
    resources: ResourcesDep,
    identity: Admin,
    job_id: JobId,
    dry_run: Annotated[bool, Query(description="Return the plan only.")] = False,
    force: Annotated[bool, Query(description="Delete the job even if it has not ended.")] = False,
    with_files: Annotated[bool, Query(description="Delete its checkpoint files in S3 too.")] = False,
    keep: Annotated[KeptSinks, Depends(_kept)],
    reason: Annotated[Text | None, Query(description="The reason, which is stored.")] = None,
) -> Response:
    """Delete a job from all stores.

    The job disappears from lists at once, and its messages are not stored any more. Workers delete the rest; the
    status is then 202, and `GET /jobs/{job_id}/deletion` returns the progress. A repeated request retries failed
    parts; it returns 200 once the deletion has finished.
    """
    if dry_run:
        return _planned(resources, job_id)
    choice = Choice(with_files=with_files, keep=keep)
    by = "gateway, without a token" if identity.token_id is None else f"gateway, token {identity.token_id}"
    try:
        deletion = start_deletion(
            resources.engine,
            resources.redis,
            job_id,
            choice,
            by=by,
            reason=reason,
            force=force,
            on_unpublished=lambda why: log.warning("deletion.not_announced", job_id=job_id, reason=why),
        )
    except NoSuchJob as exc:
        raise unknown_job(job_id) from exc
    log.info("job.deleted", job_id=job_id, by=by)
    return json_response(_report(deletion), 200 if deletion.is_finished else 202)


@router.get("/jobs/{job_id}/deletion", dependencies=VIEWER, responses=described(DeletionReport, 404))
def deletion(resources: ResourcesDep, job_id: JobId) -> Response:
    """Return the progress of a job's deletion."""
    with resources.reading() as connection:
        known = find_deletion(connection, job_id)
    if known is None:
        raise not_found(f"job {job_id} was not deleted")
    return json_response(_report(known))


@router.delete("/jobs/{job_id}/deletion", status_code=204, responses=described_problems(404, 409))
def forget(resources: ResourcesDep, job_id: JobId, _identity: Admin) -> Response:
    """Make the number of a deleted job usable again: new messages with this number are then stored."""
    try:
        with resources.engine.begin() as connection:
            forget_deletion(connection, job_id)
            # Before the commit, so that the request can be repeated after an error of Redis.
            forget_acks(resources.stream_client or resources.redis, job_id)
    except NoSuchJob as exc:
        raise not_found(str(exc)) from exc
    return Response(status_code=204)


def _planned(resources: Resources, job_id: int) -> Response:
    try:
        with resources.reading() as connection:
            planned = plan_or_deletion(connection, job_id)
    except NoSuchJob as exc:
        raise unknown_job(job_id) from exc
    if isinstance(planned, DeletionPlan):
        return json_response(DeletionReport(job_id=job_id, name=planned.name, state="planned", plan=planned))
    return json_response(_report(planned))


def _report(deletion: Deletion) -> DeletionReport:
    state = "deleting" if not deletion.is_finished else "deleted" if deletion.is_complete else "left"
    return document_from(DeletionReport, deletion, state=state, plan=None)
