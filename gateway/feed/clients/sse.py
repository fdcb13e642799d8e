"""The live feed as server-sent events, for clients without WebSocket: `/jobs/{id}/events` and `/jobs/events`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Path, Query, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from trainwire.gateway.auth.authorization import authorize_connection, wait_until_refused
from trainwire.gateway.feed.client_queues import ClientQueue, MemoryQueue
from trainwire.gateway.feed.feed_queries import JobDeleted, JobNotFound
from trainwire.gateway.feed.feed_rows import InvalidPosition, parse_position
from trainwire.gateway.feed.followed_job import FirstFrame, FollowedJob
from trainwire.gateway.feed.frames import FrameBatch
from trainwire.gateway.feed.live_feed import LiveFeed
from trainwire.gateway.feed.read_pool import PostgresUnavailable
from trainwire.gateway.http.problems import ProblemError, deleted_job, problem, unknown_job, wrong_value
from trainwire.schemas.wire.validation import MAX_ID

MEDIA_TYPE: Final = "text/event-stream"
PING_EVERY_S: Final = 20.0

JobId = Annotated[int, Path(ge=0, le=MAX_ID, description="The job's number.", examples=[42])]
After = Annotated[
    str | None,
    Query(description="The position to resume from: the `id` of the last event.", examples=["120-45-3"]),
]
LastEventId = Annotated[
    str | None, Header(description="The same, as browsers send it when they reconnect; overrides `after`.")
]
_STREAM: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "An endless stream of server-sent events.",
        "content": {
            MEDIA_TYPE: {
                "example": "id: 120-45-3\nevent: training_log\n"
                'data: {"type":"training_log","v":1,"job_id":42,"attempt":1,"kind":"logs","first_seq":120,'
                '"last_seq":120,"lines":[{"seq":120,"attempt":1,"ts":1790000000000000000,"log_type":"stdout",'
                '"text":"epoch 1"}]}\n\n'
            }
        },
    }
}
router = APIRouter(tags=["feed"])


class _Comment(FrameBatch):
    """An SSE control line (a comment or `retry`), which browsers do not dispatch as an event."""

    def __init__(self, line: bytes) -> None:
        super().__init__(())
        self.sse = line + b"\n\n"


_PING: Final = _Comment(b": ping")
_RETRY: Final = _Comment(b"retry: 1000")


class EventStream(Response):
    """Response of server-sent events until the client disconnects, is too slow, or is not authorized any more."""

    media_type = MEDIA_TYPE

    def __init__(
        self,
        request: Request,
        job_id: int | None,
        add_client: Callable[[ClientQueue], Awaitable[None]],
        remove_client: Callable[[ClientQueue], None],
    ) -> None:
        self.status_code = 200
        self.body = b""
        self.background = None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._request = request
        self._job_id = job_id
        self._add_client = add_client
        self._remove_client = remove_client

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point: send the first frame, then events until the connection ends."""
        queue = MemoryQueue(partial(self._request.app.state.telemetry.count_cut, "behind"))
        queue.send(_RETRY)
        until = (
            _send_queued(self, queue, send),
            _wait_for_disconnect(receive),
            wait_until_refused(self._request, self._job_id),
        )
        tasks = [asyncio.create_task(run) for run in (*until, self._add(queue), _ping(queue))]
        try:
            await asyncio.wait(tasks[: len(until)], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._remove_client(queue)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _add(self, queue: MemoryQueue) -> None:
        try:
            await self._add_client(queue)
        except PostgresUnavailable:
            queue.resync()  # browsers reconnect by themselves, with their position


async def _send_queued(response: Response, queue: MemoryQueue, send: Send) -> None:
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    while batches := await queue.next():
        data = batches[0].sse if len(batches) == 1 else b"".join(batch.sse for batch in batches)
        await send({"type": "http.response.body", "body": data, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _ping(queue: MemoryQueue) -> None:
    """Send comments regularly, because some proxies close idle connections."""
    while True:
        await asyncio.sleep(PING_EVERY_S)
        queue.send(_PING)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@router.get(
    "/jobs/events",
    status_code=200,
    response_class=EventStream,
    responses=_STREAM,
    summary="Follow all jobs",
)
async def jobs_events(request: Request) -> Response:
    """Stream the events of all jobs: `snapshot` with the newest 200 jobs, then the changes of the list."""
    await authorize_connection(request)
    jobs = request.app.state.feed.jobs
    return EventStream(request, None, jobs.add_client, jobs.remove_client)


@router.get(
    "/jobs/{job_id}/events",
    status_code=200,
    response_class=EventStream,
    responses=_STREAM,
    summary="Follow a job",
)
async def job_events(
    request: Request, job_id: JobId, after: After = None, last_event_id: LastEventId = None
) -> Response:
    """Stream the events of one job.

    The first event is `snapshot`: the job, its newest lines and its checkpoints. With a position it is `resumed`,
    followed by the events after that position. Then new events follow. The `id` of each event is the position
    after it.
    """
    await authorize_connection(request, job_id)
    feed: LiveFeed = request.app.state.feed
    job, first = await _begin(feed, job_id, after if last_event_id is None else last_event_id)

    def remove_client(queue: ClientQueue) -> None:
        job.remove_client(queue)
        feed.release(job)

    return EventStream(request, job_id, lambda queue: job.add_client(queue, first), remove_client)


async def _begin(feed: LiveFeed, job_id: int, after: str | None) -> tuple[FollowedJob, FirstFrame]:
    """Acquire a job and return it with its first frame.

    Errors are raised as `ProblemError`: the response has not begun, so its status can still report them.
    """
    try:
        position = None if after is None else parse_position(after)
        job = await feed.acquire(job_id)
        try:
            return job, await job.first_frame(position)
        except BaseException:
            feed.release(job)
            raise
    except InvalidPosition as exc:
        raise wrong_value("after", after, str(exc)) from exc
    except JobDeleted as exc:
        raise deleted_job(job_id) from exc
    except JobNotFound as exc:
        raise unknown_job(job_id) from exc
    except PostgresUnavailable as exc:
        detail = "Postgres does not answer (DATABASE_URL): try again"
        raise ProblemError(problem(503, "postgres-away", "Postgres is unavailable", detail)) from exc
