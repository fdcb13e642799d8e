"""For trainers that cannot use the SDK: what they say over HTTP goes the way of all messages."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Header
from starlette.responses import Response

from gateway import examples
from gateway.answers import described, json_answer
from gateway.callback_bodies import CheckpointCallback, CompletionCallback, LogsCallback, ProgressCallback
from gateway.callbacks import Idempotency
from gateway.documents import Accepted
from gateway.parameters import TRAINER, Found, JobId
from gateway.resources import Resources

router = APIRouter(tags=["callbacks"], dependencies=TRAINER)

AnyCallback = ProgressCallback | CompletionCallback | LogsCallback | CheckpointCallback
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="A name for this request: sent again with the same key, within a day, it is taken once.",
        examples=["epoch-3"],
    ),
]
_ACCEPTED: Any = described(Accepted, examples.ACCEPTED, 400, 413, status=202)


@router.post("/jobs/{job_id}/callback/progress", status_code=202, responses=_ACCEPTED)
def progress(
    found: Found, job_id: JobId, body: ProgressCallback, later: BackgroundTasks, key: Key = None
) -> Response:
    """Say how far a training is, and its newest metrics. The first word of a job makes it."""
    return _take(found, job_id, body, later, key)


@router.post("/jobs/{job_id}/callback/completion", status_code=202, responses=_ACCEPTED)
def completion(
    found: Found, job_id: JobId, body: CompletionCallback, later: BackgroundTasks, key: Key = None
) -> Response:
    """Say how a training ended."""
    return _take(found, job_id, body, later, key)


@router.post("/jobs/{job_id}/callback/logs", status_code=202, responses=_ACCEPTED)
def logs(found: Found, job_id: JobId, body: LogsCallback, later: BackgroundTasks, key: Key = None) -> Response:
    """Say log lines."""
    return _take(found, job_id, body, later, key)


@router.post("/jobs/{job_id}/callback/checkpoint", status_code=202, responses=_ACCEPTED)
def checkpoint(
    found: Found, job_id: JobId, body: CheckpointCallback, later: BackgroundTasks, key: Key = None
) -> Response:
    """Say that a checkpoint has been saved."""
    return _take(found, job_id, body, later, key)


def _take(found: Resources, job_id: int, body: AnyCallback, later: BackgroundTasks, key: str | None) -> Response:
    said = f"{type(body).__name__} {body!r}".encode("utf-8", "backslashreplace")
    once = None if key is None else Idempotency(key, hashlib.sha256(said).hexdigest())
    taken = found.callbacks.put(job_id, body.attempt, body.messages(), once)
    later.add_task(found.callbacks.ring, taken)
    headers = {"Idempotency-Replayed": "true"} if taken.is_repeated else None
    answer = json_answer(Accepted(job_id=job_id), 202, headers)
    answer.background = later
    return answer
