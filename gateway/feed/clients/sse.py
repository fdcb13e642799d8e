"""The feed as server-sent events: `/jobs/{id}/events` and `/jobs/events`, for whoever has no WebSocket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Annotated, Any, Final

from fastapi import Header, Path, Query, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from trainwire.gateway.auth.authorization import authorize_connection
from trainwire.gateway.feed.client_queues import MustComeAgain, Outlet, QueueOutlet
from trainwire.gateway.feed.clients.admission import until_refused
from trainwire.gateway.feed.feed_queries import DeletedJob, UnknownJob
from trainwire.gateway.feed.frames import Bundle
from trainwire.gateway.feed.job_room import First, Watch
from trainwire.gateway.feed.live import Feed
from trainwire.gateway.feed.positions import BadPosition, read_position
from trainwire.gateway.feed.read_pool import PostgresAway
from trainwire.gateway.http.problems import ProblemError, deleted_job, problem, unknown_job, wrong_value
from trainwire.schemas.validation import MAX_ID

MEDIA_TYPE: Final = "text/event-stream"
PING_EVERY_S: Final = 20.0


class _Comment(Bundle):
    """What is for the connection, and no event."""

    def __init__(self, line: bytes) -> None:
        super().__init__(())
        self.sse = line + b"\n\n"


_PING: Final = _Comment(b": ping")
_RETRY: Final = _Comment(b"retry: 1000")

JobId = Annotated[int, Path(ge=0, le=MAX_ID, description="The job.", examples=[42])]
After = Annotated[
    str | None, Query(description="The position to go on from: the `id` of an event.", examples=["120-45-3"])
]
LastEventId = Annotated[str | None, Header(description="The same, as a browser says it when it reconnects.")]


class EventStream(Response):
    """Answers with events until the client is gone or told to come again."""

    media_type = MEDIA_TYPE

    def __init__(
        self,
        join: Callable[[Outlet], Awaitable[None]],
        leave: Callable[[Outlet], None],
        refused: Callable[[], Coroutine[Any, Any, None]],
        on_behind: Callable[[], None],
    ) -> None:
        self.status_code = 200
        self.body = b""
        self.background = None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._join = join
        self._leave = leave
        self._refused = refused
        self._on_behind = on_behind

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        """Send until the end."""
        outlet = QueueOutlet(self._on_behind)
        outlet.send(_RETRY)
        ends = (self._send(outlet, send), _until_gone(receive), self._refused())
        tasks = [asyncio.create_task(run) for run in (*ends, self._begin(outlet), _ping(outlet))]
        try:
            await asyncio.wait(tasks[: len(ends)], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._leave(outlet)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _begin(self, outlet: QueueOutlet) -> None:
        try:
            await self._join(outlet)
        except (MustComeAgain, PostgresAway):
            outlet.resync()  # the browser comes again by itself, with its position

    async def _send(self, outlet: QueueOutlet, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        while bundles := await outlet.next():
            data = bundles[0].sse if len(bundles) == 1 else b"".join(bundle.sse for bundle in bundles)
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
    watch, first = await _first(feed, job_id, after if last_event_id is None else last_event_id)

    async def join(outlet: Outlet) -> None:
        outlet.send(first.bundle)
        await watch.follow(outlet, first.look.position)

    def leave(outlet: Outlet) -> None:
        watch.leave(outlet)
        feed.release(watch)

    return EventStream(join, leave, partial(until_refused, request, job_id), _behind(request))


async def _first(feed: Feed, job_id: int, written: str | None) -> tuple[Watch, First]:
    """Begin to watch a job and return the first frame, or end with a problem while that can still be told."""
    try:
        position = None if written is None else read_position(written)
        watch = await feed.watch(job_id)
        try:
            return watch, await watch.first(position)
        except BaseException:
            feed.release(watch)
            raise
    except BadPosition as exc:
        raise wrong_value("after", written, str(exc)) from exc
    except DeletedJob as exc:
        raise deleted_job(job_id) from exc
    except UnknownJob as exc:
        raise unknown_job(job_id) from exc
    except PostgresAway as exc:
        detail = "Postgres does not answer (DATABASE_URL): try again"
        raise ProblemError(problem(503, "postgres-away", "Postgres is away", detail)) from exc


async def jobs_events(request: Request) -> Response:
    """What happens to all jobs, as server-sent events: `snapshot` with the newest 200, then what a list shows."""
    await authorize_connection(request)
    feed: Feed = request.app.state.feed
    return EventStream(feed.jobs.follow, feed.jobs.leave, partial(until_refused, request, None), _behind(request))


def _behind(request: Request) -> Callable[[], None]:
    return partial(request.app.state.telemetry.count_cut, "behind")


async def _ping(outlet: QueueOutlet) -> None:
    """Send now and then what keeps proxies from closing a quiet connection."""
    while True:
        await asyncio.sleep(PING_EVERY_S)
        outlet.send(_PING)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
