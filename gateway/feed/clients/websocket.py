"""The live feed over WebSocket: `/jobs/{id}/ws` and `/jobs/ws`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Any, Final

from fastapi import APIRouter
from sqlalchemy.exc import SQLAlchemyError
from starlette.websockets import WebSocket, WebSocketDisconnect

from trainwire.gateway.auth.authorization import (
    SUBPROTOCOL,
    Forbidden,
    Unauthorized,
    authorize_connection,
    parse_number,
    wait_until_refused,
)
from trainwire.gateway.feed.client_queues import (
    RESYNC_CODE,
    RESYNC_REASON,
    ClientQueue,
    MemoryQueue,
    SocketQueue,
)
from trainwire.gateway.feed.feed_queries import JobDeleted, JobNotFound
from trainwire.gateway.feed.feed_rows import InvalidPosition, parse_position
from trainwire.gateway.feed.followed_job import FollowedJob
from trainwire.gateway.feed.live_feed import LiveFeed
from trainwire.gateway.feed.protocol import frame_protocol
from trainwire.gateway.feed.read_pool import PostgresUnavailable
from trainwire.schemas.wire.validation import MAX_ID

MAX_REASON_CHARS: Final = 100
"""Maximum length of a close reason; a close frame has room for 123 bytes (RFC 6455, 5.5)."""
TRY_AGAIN_LATER: Final = 1013
_CODES: Final[dict[type[Exception], int]] = {
    InvalidPosition: 4400,
    Unauthorized: 4401,
    Forbidden: 4403,
    JobDeleted: 4410,  # before JobNotFound, its base class
    JobNotFound: 4404,
    PostgresUnavailable: TRY_AGAIN_LATER,
    SQLAlchemyError: TRY_AGAIN_LATER,
}
AddClient = Callable[[ClientQueue], Coroutine[Any, Any, None]]
router = APIRouter(tags=["feed"])


@router.websocket("/jobs/ws")
async def jobs_socket(websocket: WebSocket) -> None:
    """Send a snapshot of the newest 200 jobs, then the changes of the list."""
    await _accept(websocket, _follow_jobs)


@router.websocket("/jobs/{job_id}/ws")
async def job_socket(websocket: WebSocket) -> None:
    """Send a snapshot of a job, or the events after the position `after`; then send new events."""
    await _accept(websocket, _follow_job)


async def _accept(websocket: WebSocket, follow: Callable[[WebSocket], Awaitable[None]]) -> None:
    """Accept the WebSocket and call `follow`; if that refuses the request, close with a code and reason.

    A request that will be refused is accepted first, because browsers report close codes only of accepted
    connections.
    """
    offered = websocket.scope.get("subprotocols", [])
    await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
    try:
        await follow(websocket)
    except tuple(_CODES) as refusal:
        code = next(code for kind, code in _CODES.items() if isinstance(refusal, kind))
        reason = str(refusal) if code != TRY_AGAIN_LATER else "Postgres is unavailable: try again"
        with suppress(WebSocketDisconnect, RuntimeError):  # it is closed already
            await websocket.close(code, reason.encode("ascii", "replace").decode()[:MAX_REASON_CHARS])
    except WebSocketDisconnect:
        return


async def _follow_jobs(websocket: WebSocket) -> None:
    await authorize_connection(websocket)
    jobs = websocket.app.state.feed.jobs
    await _serve(websocket, None, jobs.add_client, jobs.remove_client)


async def _follow_job(websocket: WebSocket) -> None:
    job_id = _parse_job_id(websocket.path_params["job_id"])
    await authorize_connection(websocket, job_id)
    after = websocket.query_params.get("after")
    position = None if after is None else parse_position(after)
    feed: LiveFeed = websocket.app.state.feed
    job: FollowedJob | None = None

    async def add_client(queue: ClientQueue) -> None:
        nonlocal job
        job = await feed.acquire(job_id)
        await job.add_client(queue, await job.first_frame(position))

    def remove_client(queue: ClientQueue) -> None:
        if job is not None:
            job.remove_client(queue)

    try:
        await _serve(websocket, job_id, add_client, remove_client)
    finally:
        if job is not None:
            feed.release(job)


def _parse_job_id(text: str) -> int:
    """Parse the number of a job in a path; raise `JobNotFound` if it cannot be one."""
    job_id = parse_number(text)
    if job_id is None or job_id > MAX_ID:
        raise JobNotFound(text[:20])
    return job_id


async def _serve(
    websocket: WebSocket, job_id: int | None, add_client: AddClient, remove_client: Callable[[ClientQueue], None]
) -> None:
    """Send events until the client disconnects; raise the error of a task that fails, for example `Forbidden`."""
    protocol = frame_protocol(websocket)
    on_behind = partial(websocket.app.state.telemetry.count_cut, "behind")
    queue = MemoryQueue(on_behind) if protocol is None else SocketQueue(protocol, on_behind)
    heartbeats = websocket.app.state.feed.heartbeats
    # Before the client's first frame, which waits for Postgres.
    if websocket.query_params.get("heartbeat") == "true":
        heartbeats.add_client(queue)
    disconnect = asyncio.create_task(_wait_for_disconnect(websocket))
    runs: list[Coroutine[Any, Any, None]] = [add_client(queue), wait_until_refused(websocket, job_id)]
    if isinstance(queue, MemoryQueue):
        runs.append(_send_queued(websocket, queue))
    tasks = {disconnect, *map(asyncio.create_task, runs)}
    waiting = tasks
    try:
        while not disconnect.done():
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    finally:
        heartbeats.remove_client(queue)
        remove_client(queue)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _wait_for_disconnect(websocket: WebSocket) -> None:
    """Read and ignore the client's messages until it closes the connection."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass


async def _send_queued(websocket: WebSocket, queue: MemoryQueue) -> None:
    with suppress(WebSocketDisconnect):
        while batches := await queue.next():
            for frame in chain.from_iterable(batch.frames for batch in batches):
                await websocket.send_text(frame.text.decode())
        await websocket.close(RESYNC_CODE, RESYNC_REASON)
