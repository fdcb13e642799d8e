"""Routes to delete a job (for admins): plan, deletion, progress, and reuse of the number."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import redis
import structlog
from fastapi import APIRouter, Depends, Query
from pydantic import Field, create_model
from starlette.responses import Response

from trainwire.gateway.auth.authorization import Identity, require
from trainwire.gateway.documents.response_types import DeletionReport, document_from
from trainwire.gateway.http.problems import not_found, unknown_job
from trainwire.gateway.http.responses import described, described_problems, json_response
from trainwire.gateway.routes.parameters import VIEWER, JobId, ResourcesDep, Text
from trainwire.schemas.sinks import SINKS
from trainwire.schemas.streams.tls import redis_trouble
from trainwire.stores.postgres.deletion import (
    Choice,
    Deletion,
    UnknownJob,
    announce_deletion,
    begin_deletion,
    find_deletion,
    forget_acks,
    forget_deletion,
    plan_deletion,
)

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

    The job disappears from lists at once, and its messages are not stored any more. Workers delete the rest (202);
    `GET /jobs/{job_id}/deletion` has the progress. A repeated request retries failed parts; 200 means finished.
    """
    if dry_run:
        return _planned(resources, job_id)
    choice = Choice(with_files=with_files, keep=keep)
    by = "gateway, without a token" if identity.token_id is None else f"gateway, token {identity.token_id}"
    try:
        with resources.engine.begin() as connection:
            deletion = begin_deletion(connection, job_id, choice, by=by, reason=reason, force=force)
    except UnknownJob as exc:
        raise unknown_job(job_id) from exc
    log.info("job.deleted", job_id=job_id, by=by)
    try:
        announce_deletion(resources.redis, deletion)
    except redis.RedisError as exc:  # the workers repeat it
        log.warning("deletion.not_announced", job_id=job_id, reason=redis_trouble(exc))
    return json_response(_report(deletion), 200 if deletion.is_finished else 202)


@router.get("/jobs/{job_id}/deletion", dependencies=VIEWER, responses=described(DeletionReport, 404))
def deletion(resources: ResourcesDep, job_id: JobId) -> Response:
    """Return the progress of a deletion."""
    with resources.reading() as connection:
        known = find_deletion(connection, job_id)
    if known is None:
        raise not_found(f"job {job_id} was not deleted")
    return json_response(_report(known))


@router.delete("/jobs/{job_id}/deletion", status_code=204, responses=described_problems(404, 409))
def forget(resources: ResourcesDep, job_id: JobId, _identity: Admin) -> Response:
    """Make the number of a deleted job usable again: new messages with it are stored."""
    try:
        with resources.engine.begin() as connection:
            forget_deletion(connection, job_id)
    except UnknownJob as exc:
        raise not_found(str(exc)) from exc
    forget_acks(resources.stream_client or resources.redis, job_id)
    return Response(status_code=204)


def _planned(resources: ResourcesDep, job_id: int) -> Response:
    with resources.reading() as connection:
        plan = plan_deletion(connection, job_id)
        known = find_deletion(connection, job_id) if plan is None else None
    if known is not None:
        return json_response(_report(known))
    if plan is None:
        raise unknown_job(job_id)
    report = DeletionReport(job_id=plan.job_id, name=plan.name, state="planned", plan=plan)
    return json_response(report)


def _report(deletion: Deletion) -> DeletionReport:
    state = "deleting" if not deletion.is_finished else "deleted" if deletion.is_complete else "left"
    return document_from(DeletionReport, deletion, state=state, plan=None)
