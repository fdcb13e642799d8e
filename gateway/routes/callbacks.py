"""For trainers that cannot use the SDK: what they say over HTTP goes the way of all messages."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Any

import anyio
from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Query
from starlette.responses import Response

from trainwire.gateway.callbacks.bodies import (
    CheckpointCallback,
    CompletionCallback,
    LogsCallback,
    ProgressCallback,
)
from trainwire.gateway.callbacks.callbacks import Idempotency, Taken
from trainwire.gateway.documents.documents import Accepted, Stored
from trainwire.gateway.http import openapi_examples as examples
from trainwire.gateway.http.answers import described, json_answer
from trainwire.gateway.resources import Resources
from trainwire.gateway.routes.parameters import TRAINER, Found, JobId
from trainwire.schemas.streams.clients import STREAM_ERRORS

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
WaitS = Annotated[
    float,
    Query(
        ge=0,
        le=60,
        description="How many seconds to wait for the commit in Postgres: once it is, the answer is 200.",
    ),
]
_ANSWERS: Any = {
    **described(Stored, examples.STORED),
    **described(Accepted, examples.ACCEPTED, 400, 410, 413, status=202),
}
_LOOK_S = 0.02
_MOST_LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Call:
    """What every callback comes with, besides its body."""

    found: Resources
    job_id: int
    key: str | None
    wait_s: float


async def _call(found: Found, job_id: JobId, key: Key = None, wait_s: WaitS = 0) -> Call:
    # Async, for FastAPI runs others in the readers' threads, which may all be waiting.
    return Call(found, job_id, key, wait_s)


Called = Annotated[Call, Depends(_call)]


@router.post("/jobs/{job_id}/callback/progress", status_code=202, responses=_ANSWERS)
async def progress(call: Called, body: ProgressCallback) -> Response:
    """Say how far a training is, and its newest metrics. The first word of a job makes it."""
    return await _take(call, body)


@router.post("/jobs/{job_id}/callback/completion", status_code=202, responses=_ANSWERS)
async def completion(call: Called, body: CompletionCallback) -> Response:
    """Say how a training ended."""
    return await _take(call, body)


@router.post("/jobs/{job_id}/callback/logs", status_code=202, responses=_ANSWERS)
async def logs(call: Called, body: LogsCallback) -> Response:
    """Say log lines."""
    return await _take(call, body)


@router.post("/jobs/{job_id}/callback/checkpoint", status_code=202, responses=_ANSWERS)
async def checkpoint(call: Called, body: CheckpointCallback) -> Response:
    """Say that a checkpoint has been saved."""
    return await _take(call, body)


async def _take(call: Call, body: AnyCallback) -> Response:
    """Put what was said on the streams, in threads of the callbacks' own: who reads much holds up no trainer."""
    found, job_id = call.found, call.job_id

    def put() -> Taken:
        said = f"{type(body).__name__} {body!r}".encode("utf-8", "backslashreplace")
        once = None if call.key is None else Idempotency(call.key, hashlib.sha256(said).hexdigest())
        return found.callbacks.put(job_id, body.attempt, body.messages(), once)

    taken = await to_thread.run_sync(put, limiter=found.callback_threads)
    headers = {"Idempotency-Replayed": "true"} if taken.is_repeated else None
    if call.wait_s and await _is_stored_within(found, taken, call.wait_s):
        return json_answer(Stored(job_id=job_id), 200, headers)
    return json_answer(Accepted(job_id=job_id), 202, headers)


async def _is_stored_within(found: Resources, taken: Taken, wait_s: float) -> bool:
    """Tell whether the workers ack a request in time; a Redis that is away meanwhile is asked again."""
    pause_s = _LOOK_S
    with anyio.move_on_after(wait_s):
        while True:
            try:
                if await to_thread.run_sync(found.callbacks.is_stored, taken, limiter=found.callback_threads):
                    return True
            except STREAM_ERRORS:
                pause_s = _MOST_LOOK_S
            await anyio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _MOST_LOOK_S)
    return False
