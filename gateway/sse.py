"""The feed as server-sent events: `/jobs/{id}/events` and `/jobs/events`, for whoever has no WebSocket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Final

from fastapi import Header, Path, Query, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.auth import authorize_connection
from gateway.fills import UnknownJob
from gateway.live import Feed
from gateway.outlets import Outlet, QueueOutlet, TooSlow
from gateway.positions import BadPosition, read_position
from gateway.problems import ProblemError, problem, unknown_job, wrong_value
from gateway.reading import PostgresAway
from schemas.messages import MAX_ID

MEDIA_TYPE: Final = "text/event-stream"
PING_EVERY_S: Final = 20.0
_PING: Final = b": ping\n\n"
_RETRY: Final = b"retry: 1000\n\n"

JobId = Annotated[int, Path(ge=0, le=MAX_ID, description="The job.", examples=[42])]
After = Annotated[
    str | None, Query(description="The position to go on from: the `id` of an event.", examples=["120-45-3"])
]
LastEventId = Annotated[str | None, Header(description="The same, as a browser says it when it reconnects.")]


class EventStream(Response):
    """Answers with events until the client is gone or told to come again."""

    media_type = MEDIA_TYPE

    def __init__(self, join: Callable[[Outlet], Awaitable[None]], leave: Callable[[Outlet], None]) -> None:
        self.status_code = 200
        self.body = b""
        self.background = None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._join = join
        self._leave = leave

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        """Send until the end."""
        outlet = QueueOutlet()
        tasks = [
            asyncio.create_task(self._begin(outlet)),
            asyncio.create_task(self._send(outlet, send)),
            asyncio.create_task(_until_gone(receive)),
        ]
        try:
            await asyncio.wait(tasks[1:], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._leave(outlet)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _begin(self, outlet: QueueOutlet) -> None:
        try:
            await self._join(outlet)
        except (TooSlow, UnknownJob, PostgresAway):
            outlet.resync()  # the browser comes again by itself, with its position

    async def _send(self, outlet: QueueOutlet, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for data in _chunks(outlet):
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def job_events(
    request: Request, job_id: JobId, after: After = None, last_event_id: LastEventId = None
) -> Response:
    """Everything that happens to one job, as server-sent events.

    First `snapshot` (the job, its newest lines, its checkpoints), or with a position `resumed` and what was
    missed; then what happens. The `id` of each event is the position after it.
    """
    await authorize_connection(request, job_id)
    feed: Feed = request.app.state.feed
    written = after if last_event_id is None else last_event_id
    try:
        position = None if written is None else read_position(written)
        watch = await feed.watch(job_id)
        try:
            first = await watch.first(position)
        except BaseException:
            feed.release(watch)
            raise
    except BadPosition as exc:
        raise wrong_value("after", written, str(exc)) from exc
    except UnknownJob as exc:
        raise unknown_job(job_id) from exc
    except PostgresAway as exc:
        raise _away(exc) from exc

    async def join(outlet: Outlet) -> None:
        outlet.send(first.bundle)
        await watch.follow(outlet, first.look.position)

    def leave(outlet: Outlet) -> None:
        watch.leave(outlet)
        feed.release(watch)

    return EventStream(join, leave)


async def jobs_events(request: Request) -> Response:
    """What happens to all jobs, as server-sent events: `snapshot` with the newest 200, then what a list shows."""
    await authorize_connection(request)
    feed: Feed = request.app.state.feed
    return EventStream(feed.jobs.follow, feed.jobs.leave)


async def _chunks(outlet: QueueOutlet) -> AsyncIterator[bytes]:
    """Yield what is to be sent, and now and then something that keeps proxies from closing a quiet connection."""
    yield _RETRY
    while True:
        try:
            bundle = await asyncio.wait_for(outlet.next(), PING_EVERY_S)
        except TimeoutError:
            yield _PING
            continue
        if bundle is None:
            return
        yield bundle.sse


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _away(exc: PostgresAway) -> ProblemError:
    return ProblemError(problem(503, "postgres-away", "Postgres is away", f"{exc}: try again"))
