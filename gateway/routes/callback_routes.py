"""Routes of callbacks: trainers without the SDK send messages over HTTP, which are stored like all others."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final

import anyio
from anyio import to_thread
from fastapi import APIRouter, Header, Query
from starlette.responses import Response

from trainwire.gateway.callbacks.bodies import (
    CheckpointCallback,
    CompletionCallback,
    LogsCallback,
    ProgressCallback,
)
from trainwire.gateway.callbacks.callback_streams import AppendResult, Idempotency
from trainwire.gateway.documents.response_types import Accepted, Stored
from trainwire.gateway.http.responses import described, json_response
from trainwire.gateway.resources import Resources
from trainwire.gateway.routes.parameters import JobId, ResourcesDep, TrainerOfNames
from trainwire.schemas.streams.clients import STREAM_ERRORS

router = APIRouter(tags=["callbacks"])

AnyCallback = ProgressCallback | CompletionCallback | LogsCallback | CheckpointCallback
CALLBACKS: Final[dict[str, tuple[type[AnyCallback], str]]] = {
    "progress": (
        ProgressCallback,
        "Report the progress and the newest metrics. The first callback creates the job.",
    ),
    "completion": (CompletionCallback, "Report the end of a training."),
    "logs": (LogsCallback, "Send log lines."),
    "checkpoint": (CheckpointCallback, "Report a saved checkpoint."),
}
"""The type of the body and the description of each callback, by its name in the path."""
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="A name for this request: repeated with the same key within a day, it is stored once.",
        examples=["epoch-3"],
    ),
]
WaitS = Annotated[
    float,
    Query(
        ge=0,
        le=60,
        description="How many seconds to wait for the commit in Postgres; the answer is 200 once it is done.",
    ),
]
_RESPONSES: Any = {
    **described(Stored),
    **described(Accepted, 400, 409, 410, 413, status=202),
}
_POLL_S = 0.02
_MAX_POLL_S = 0.5


def _route(body_type: type[AnyCallback]) -> Callable[..., Awaitable[Response]]:
    """Return the route function for a type of body; it appends the messages of the body to the Redis streams.

    Callbacks have threads of their own, so that slow requests of other routes do not delay them.
    """

    async def callback(
        resources: ResourcesDep,
        identity: TrainerOfNames,
        job_id: JobId,
        body: AnyCallback,
        *,
        key: Key = None,
        wait_s: WaitS = 0,
    ) -> Response:
        def put() -> AppendResult:
            name = body.name if isinstance(body, ProgressCallback) else None
            resources.job_names.check(identity, job_id, [] if name is None else [name])
            request = f"{type(body).__name__} {body!r}".encode("utf-8", "backslashreplace")
            idempotency = None if key is None else Idempotency(key, hashlib.sha256(request).hexdigest())
            return resources.callbacks.put(job_id, body.attempt, body.messages(), idempotency)

        result = await to_thread.run_sync(put, limiter=resources.callback_threads)
        headers = {"Idempotency-Replayed": "true"} if result.is_repeated else None
        if wait_s and await _is_stored_within(resources, result, wait_s):
            return json_response(Stored(job_id=job_id), 200, headers)
        return json_response(Accepted(job_id=job_id), 202, headers)

    callback.__annotations__["body"] = body_type  # FastAPI parses and describes the body by this
    return callback


for name, (body_type, description) in CALLBACKS.items():
    router.add_api_route(
        f"/jobs/{{job_id}}/callback/{name}",
        _route(body_type),
        methods=["POST"],
        name=name,
        description=description,
        status_code=202,
        responses=_RESPONSES,
    )


async def _is_stored_within(resources: Resources, result: AppendResult, wait_s: float) -> bool:
    """Return whether all messages are acknowledged within `wait_s` seconds.

    The acknowledgements are read repeatedly, also after errors of Redis.
    """
    pause_s = _POLL_S
    with anyio.move_on_after(wait_s):
        while True:
            try:
                if await to_thread.run_sync(
                    resources.callbacks.is_stored, result, limiter=resources.callback_threads
                ):
                    return True
            except STREAM_ERRORS:
                pause_s = _MAX_POLL_S
            await anyio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _MAX_POLL_S)
    return False
