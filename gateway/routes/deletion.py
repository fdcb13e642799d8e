"""Deletion of a job, by admins: the plan, the order to delete, and how far the workers are with it."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import structlog
from fastapi import APIRouter, Depends, Query
from pydantic import Field, create_model
from starlette.responses import Response

from trainwire.gateway.auth.authorization import Identity, require
from trainwire.gateway.documents.documents import DeletionReport
from trainwire.gateway.http import openapi_examples as examples
from trainwire.gateway.http.answers import described, described_problems, json_answer
from trainwire.gateway.http.problems import not_there, unknown_job
from trainwire.gateway.routes.parameters import VIEWER, Found, JobId, Text
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
_ANSWERS: Any = {
    **described(DeletionReport, examples.DELETION_PLAN, 404, 409),
    **described(DeletionReport, examples.DELETION, 404, 409, status=202),
}


def _kept(wanted: Annotated[_Keep, Query()]) -> KeptSinks:
    return frozenset(name for name in SINKS if getattr(wanted, f"keep_{name}"))


@router.delete("/jobs/{job_id}", status_code=202, responses=_ANSWERS)
def delete_job(
    *,
    found: Found,
    identity: Admin,
    job_id: JobId,
    dry_run: Annotated[bool, Query(description="Only show what there is.")] = False,
    force: Annotated[bool, Query(description="Also a job that has not ended.")] = False,
    with_files: Annotated[bool, Query(description="Also its checkpoint files in S3.")] = False,
    keep: Annotated[KeptSinks, Depends(_kept)],
    reason: Annotated[Text | None, Query(description="Why, for the record.")] = None,
) -> Response:
    """Delete a job from all stores.

    It is in no list from now on, and nothing more of it is stored; workers delete the rest (202), as
    `GET /jobs/{job_id}/deletion` shows. Repeated, it tries again what could not be deleted (200: nothing is open).
    """
    if dry_run:
        return _planned(found, job_id)
    choice = Choice(with_files=with_files, keep=keep)
    by = "gateway, without a token" if identity.token_id is None else f"gateway, token {identity.token_id}"
    try:
        deletion = start_deletion(
            found.engine,
            found.redis,
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
    return json_answer(_report(deletion), 200 if deletion.is_finished else 202)


@router.get(
    "/jobs/{job_id}/deletion", dependencies=VIEWER, responses=described(DeletionReport, examples.DELETION, 404)
)
def deletion(found: Found, job_id: JobId) -> Response:
    """Show how far the deletion of a job is."""
    with found.reading() as connection:
        known = find_deletion(connection, job_id)
    if known is None:
        raise not_there(f"job {job_id} was not deleted")
    return json_answer(_report(known))


@router.delete("/jobs/{job_id}/deletion", status_code=204, responses=described_problems(404, 409))
def forget(found: Found, job_id: JobId, _identity: Admin) -> Response:
    """Let the number of a deleted job be used again: what comes under it from now on is stored."""
    try:
        with found.engine.begin() as connection:
            forget_deletion(connection, job_id)
    except NoSuchJob as exc:
        raise not_there(str(exc)) from exc
    forget_acks(found.stream_client or found.redis, job_id)
    return Response(status_code=204)


def _planned(found: Found, job_id: int) -> Response:
    try:
        with found.reading() as connection:
            planned = plan_or_deletion(connection, job_id)
    except NoSuchJob as exc:
        raise unknown_job(job_id) from exc
    return json_answer(_plan_report(planned) if isinstance(planned, DeletionPlan) else _report(planned))


def _plan_report(plan: DeletionPlan) -> DeletionReport:
    return DeletionReport(job_id=plan.job_id, name=plan.name, state="planned", plan=plan)


def _report(deletion: Deletion) -> DeletionReport:
    state = "deleting" if not deletion.is_finished else "deleted" if deletion.is_complete else "left"
    return DeletionReport(
        job_id=deletion.job_id,
        name=deletion.name,
        state=state,  # type: ignore[arg-type]
        deleted_at=deletion.deleted_at,
        deleted_by=deletion.deleted_by,
        reason=deletion.reason,
        finished_at=deletion.finished_at,
        discarded_messages=deletion.discarded_messages,
        parts=deletion.parts,
    )
