"""The feed over WebSocket: `/jobs/{id}/ws` and `/jobs/ws`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Final

from sqlalchemy.exc import SQLAlchemyError
from starlette.websockets import WebSocket, WebSocketDisconnect

from trainwire.gateway.auth.authorization import SUBPROTOCOL, Forbidden, Unauthorized, authorize_connection
from trainwire.gateway.feed.client_queues import RESYNC_CODE, MustComeAgain, Outlet, QueueOutlet, SocketOutlet
from trainwire.gateway.feed.clients.admission import until_refused
from trainwire.gateway.feed.feed_queries import DeletedJob, UnknownJob
from trainwire.gateway.feed.live import Feed
from trainwire.gateway.feed.positions import BadPosition, read_position
from trainwire.gateway.feed.protocol import frame_protocol
from trainwire.gateway.feed.read_pool import PostgresAway
from trainwire.schemas.validation import MAX_ID

MAX_REASON_CHARS: Final = 100
"""A close frame has room for 123 bytes (RFC 6455, 5.5)."""
TRY_AGAIN_LATER: Final = 1013
_CODES: Final[dict[type[Exception], int]] = {
    BadPosition: 4400,
    Unauthorized: 4401,
    Forbidden: 4403,
    DeletedJob: 4410,  # before UnknownJob, of which it is one
    UnknownJob: 4404,
    PostgresAway: TRY_AGAIN_LATER,
    SQLAlchemyError: TRY_AGAIN_LATER,
}

Join = Callable[[Outlet], Awaitable[None]]


async def job_socket(websocket: WebSocket) -> None:
    """Say everything of one job: a snapshot or what was missed, then what happens."""
    await _accepted(websocket, _follow_job)


async def jobs_socket(websocket: WebSocket) -> None:
    """Say what happens to all jobs, as a list shows it: a snapshot, then events."""
    await _accepted(websocket, _follow_jobs)


async def _accepted(websocket: WebSocket, follow: Callable[[WebSocket], Awaitable[None]]) -> None:
    """Accept first, for a browser tells its page a close code only then."""
    offered = websocket.scope.get("subprotocols", [])
    await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
    try:
        await follow(websocket)
    except tuple(_CODES) as refusal:
        code = next(code for kind, code in _CODES.items() if isinstance(refusal, kind))
        reason = str(refusal) if code != TRY_AGAIN_LATER else "Postgres is away: try again"
        with suppress(WebSocketDisconnect, RuntimeError):  # closed already, by the client or by us
            await websocket.close(code, reason.encode("ascii", "replace").decode()[:MAX_REASON_CHARS])
    except WebSocketDisconnect:
        return


async def _follow_job(websocket: WebSocket) -> None:
    job_id = _job_id(websocket.path_params["job_id"])
    await authorize_connection(websocket, job_id)
    written = websocket.query_params.get("after")
    after = None if written is None else read_position(written)
    feed: Feed = websocket.app.state.feed
    watch = await feed.watch(job_id)

    async def join(outlet: Outlet) -> None:
        first = await watch.first(after)
        outlet.send(first.bundle)
        await watch.follow(outlet, first.look.position)

    try:
        await _converse(websocket, job_id, join, watch.leave)
    finally:
        feed.release(watch)


async def _follow_jobs(websocket: WebSocket) -> None:
    await authorize_connection(websocket)
    feed: Feed = websocket.app.state.feed
    await _converse(websocket, None, feed.jobs.follow, feed.jobs.leave)


async def _converse(websocket: WebSocket, job_id: int | None, join: Join, leave: Callable[[Outlet], None]) -> None:
    """Have the client told until it is gone."""
    protocol = frame_protocol(websocket)
    on_behind = partial(websocket.app.state.telemetry.count_cut, "behind")
    outlet = QueueOutlet(on_behind) if protocol is None else SocketOutlet(protocol, on_behind)
    gone = asyncio.create_task(_until_gone(websocket))
    runs = [_join(outlet, join), until_refused(websocket, job_id)]
    if isinstance(outlet, QueueOutlet):
        runs.append(_send(websocket, outlet))
    tasks = {gone, *map(asyncio.create_task, runs)}
    waiting = tasks
    try:
        while not gone.done():
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    finally:
        leave(outlet)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _join(outlet: Outlet, join: Join) -> None:
    try:
        await join(outlet)
    except MustComeAgain:
        outlet.resync()


async def _until_gone(websocket: WebSocket) -> None:
    """Read what the client says, which is nothing that we need, until it closes."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass


async def _send(websocket: WebSocket, outlet: QueueOutlet) -> None:
    with suppress(WebSocketDisconnect):
        while bundles := await outlet.next():
            for frame in chain.from_iterable(bundle.frames for bundle in bundles):
                await websocket.send_text(frame.text.decode())
        await websocket.close(RESYNC_CODE, "too slow: connect again with your position")


def _job_id(written: str) -> int:
    """Return the number of a job; raise `UnknownJob` where there can be none."""
    is_number = written.isascii() and written.isdecimal() and len(written) < 20
    job_id = int(written) if is_number else -1
    if not 0 <= job_id <= MAX_ID:
        raise UnknownJob(written[:20])
    return job_id
