"""A job's checkpoints, and addresses to download their files from."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from trainwire.gateway.documents.documents import CheckpointItem, CheckpointPage, Loan
from trainwire.gateway.http import openapi_examples as examples
from trainwire.gateway.http.answers import described, json_answer
from trainwire.gateway.http.problems import not_there
from trainwire.gateway.resources import Resources, known_job
from trainwire.gateway.routes.parameters import VIEWER, Found, JobId
from trainwire.schemas.times import to_ns
from trainwire.schemas.validation import MAX_ID
from trainwire.stores.files.presign_policy import check_served
from trainwire.stores.files.s3 import MAX_PRESIGN_S
from trainwire.stores.postgres.checkpoints import CheckpointFile, NotFetchable, find_checkpoints, find_source

router = APIRouter(tags=["checkpoints"], dependencies=VIEWER)

MOST_CHECKPOINTS: Final = 1000
CheckpointSeq = Annotated[int, Path(ge=1, le=MAX_ID, description="The checkpoint's `seq`.", examples=[3])]
Seconds = Annotated[int, Query(ge=1, le=MAX_PRESIGN_S, description="How long the address works.")]


@router.get("/jobs/{job_id}/checkpoints", responses=described(CheckpointPage, examples.CHECKPOINT_PAGE, 404))
def checkpoints(found: Found, job_id: JobId) -> Response:
    """Return the newest 1000 checkpoints in the order in which they were stored."""
    with found.reading() as connection:
        job = known_job(connection, job_id)
        files = find_checkpoints(connection, job_id, newest=MOST_CHECKPOINTS)
    best, last = _newest_of(files, job.best_checkpoint_path), _newest_of(files, job.last_checkpoint_path)
    return json_answer(CheckpointPage(items=[_item(file, best, last) for file in files]))


@router.get("/jobs/{job_id}/checkpoints/{seq}/url", responses=described(Loan, examples.LOAN, 404, 502))
def checkpoint_url(found: Found, job_id: JobId, seq: CheckpointSeq, expires_s: Seconds = 3600) -> Response:
    """Return a signed address from which the file can be downloaded until it expires."""
    return _loan(found, job_id, seq, expires_s)


@router.get("/checkpoints/{job_id}-{seq}/url", responses=described(Loan, examples.LOAN, 404, 502))
def url_of_checkpoint(found: Found, job_id: JobId, seq: CheckpointSeq, expires_s: Seconds = 3600) -> Response:
    """Return the same, for who has one name for a checkpoint: the job's number and its own."""
    return _loan(found, job_id, seq, expires_s)


def _loan(found: Resources, job_id: int, seq: int, expires_s: int) -> Response:
    with found.reading() as connection:
        known_job(connection, job_id)
        try:
            source = find_source(connection, job_id, str(seq))
        except NotFetchable as exc:
            raise not_there(str(exc)) from exc
    if source.uri.is_folder:
        raise not_there(f"{source.uri} is a folder: `trainwire checkpoints {job_id} --download {seq}` fetches it")
    check_served(source.uri, found.settings)
    expires_at = datetime.now(UTC) + timedelta(seconds=expires_s)
    return json_answer(Loan(url=found.s3.presign(source.uri, expires_s), expires_at=expires_at))


def _item(file: CheckpointFile, best: int | None, last: int | None) -> CheckpointItem:
    copied = ("seq", "attempt", "uri", "epoch", "step", "size_bytes", "sha256", "metrics")
    more = ("state", "upload_error", "verified_at", "verify_error", "deleted_at", "overwritten_by")
    fields: dict[str, Any] = {name: getattr(file, name) for name in (*copied, *more)}
    return CheckpointItem(
        ts=to_ns(file.logged_at),
        checkpoint_kind=file.kind,
        is_best=file.seq == best,
        is_last=file.seq == last,
        **fields,
    )


def _newest_of(files: list[CheckpointFile], path: str | None) -> int | None:
    """Return the `seq` of the newest checkpoint at a path."""
    return max((file.seq for file in files if file.uri == path), default=None)
