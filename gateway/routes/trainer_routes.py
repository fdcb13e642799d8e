"""The route of the SDK: messages, heartbeats and acknowledgements over HTTPS."""

from __future__ import annotations

from anyio import to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response

from trainwire.gateway.routes.parameters import JobId, ResourcesDep, TrainerOfNames
from trainwire.gateway.trainers.exchange import run_exchange
from trainwire.gateway.trainers.request_bodies import check_request, decode_request
from trainwire.schemas.wire.exchange import CONTENT_TYPE, MESSAGES_PATH, encode_exchange

router = APIRouter()


@router.post(MESSAGES_PATH, include_in_schema=False)  # docs/wire-format.md: OpenAPI cannot describe msgpack
async def messages(request: Request, resources: ResourcesDep, identity: TrainerOfNames, job_id: JobId) -> Response:
    """Execute a trainer's request: append its messages to the streams and write its heartbeat.

    Returns the acknowledgements and the number of messages that Redis has accepted. If one message is not allowed,
    none is appended.
    """
    headers = request.headers
    body = await request.body()

    def run() -> bytes:
        most = resources.settings.gateway_max_body_bytes
        wanted = decode_request(body, headers.get("content-type", ""), headers.get("content-encoding", ""), most)
        names = check_request(wanted, job_id, has_names=identity.job_names is not None)
        resources.job_names.check(identity, job_id, names)
        return encode_exchange(run_exchange(resources.streams, job_id, wanted))

    answer = await to_thread.run_sync(run, limiter=resources.trainer_threads)
    return Response(answer, media_type=CONTENT_TYPE)
