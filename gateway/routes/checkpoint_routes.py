"""Routes of a job's checkpoints, and of signed URLs to download their files."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from trainwire.gateway.documents.response_types import document_from
from trainwire.gateway.documents.row_types import CheckpointItem, CheckpointPage, Loan
from trainwire.gateway.http.problems import not_found
from trainwire.gateway.http.responses import described, json_response
from trainwire.gateway.resources import job_or_404
from trainwire.gateway.routes.parameters import VIEWER, JobId, ResourcesDep, Seq
from trainwire.schemas.times import to_ns
from trainwire.schemas.wire.validation import MAX_ID
from trainwire.stores.files.presign_policy import check_served
from trainwire.stores.files.s3 import MAX_PRESIGN_S
from trainwire.stores.postgres.checkpoints import (
    CheckpointFile,
    NotFetchable,
    find_checkpoints,
    find_object,
    find_problems,
    newest_at,
)

router = APIRouter(tags=["checkpoints"], dependencies=VIEWER)

MAX_CHECKPOINTS: Final = 1000
CheckpointSeq = Annotated[int, Path(ge=1, le=MAX_ID, description="The checkpoint's `seq`.", examples=[3])]
Seconds = Annotated[int, Query(ge=1, le=MAX_PRESIGN_S, description="How long the URL is valid, in seconds.")]


@router.get("/jobs/{job_id}/checkpoints", responses=described(CheckpointPage, 404))
def checkpoints(
    resources: ResourcesDep,
    job_id: JobId,
    before: Annotated[Seq | None, Query(description="The newest of those before this `seq`.")] = None,
    problems: Annotated[
        bool, Query(description="Only files that are missing or different, or that were not uploaded.")
    ] = False,
) -> Response:
    """Return up to 1000 checkpoints of a job: the newest (before the `seq` in `before`), in stored order."""
    with resources.reading() as connection:
        job = job_or_404(connection, job_id)
        if problems:
            found = find_problems(connection, job_id)
            files = [file for file in found if before is None or file.seq < before][-MAX_CHECKPOINTS:]
        else:
            files = find_checkpoints(connection, job_id, newest=MAX_CHECKPOINTS, before=before)
    best, last = newest_at(files, job.best_checkpoint_path), newest_at(files, job.last_checkpoint_path)
    return json_response(CheckpointPage(items=[_item(file, best, last) for file in files]))


@router.get("/jobs/{job_id}/checkpoints/{seq}/url", responses=described(Loan, 404, 502))
@router.get(
    "/checkpoints/{job_id}-{seq}/url",
    name="url_of_checkpoint",
    responses=described(Loan, 404, 502),
)
def checkpoint_url(
    resources: ResourcesDep, job_id: JobId, seq: CheckpointSeq, expires_s: Seconds = 3600
) -> Response:
    """Return a signed URL from which the file of a checkpoint can be downloaded until it expires."""
    with resources.reading() as connection:
        job_or_404(connection, job_id)
        try:
            uri = find_object(connection, job_id, seq)
        except NotFetchable as exc:
            raise not_found(str(exc)) from exc
    check_served(uri, resources.settings)
    expires_at = datetime.now(UTC) + timedelta(seconds=expires_s)
    return json_response(Loan(url=resources.s3.presign(uri, expires_s), expires_at=expires_at))


def _item(file: CheckpointFile, best: int | None, last: int | None) -> CheckpointItem:
    return document_from(
        CheckpointItem,
        file,
        ts=to_ns(file.logged_at),
        checkpoint_kind=file.kind,
        is_best=file.seq == best,
        is_last=file.seq == last,
        was_best=file.is_best,
    )
