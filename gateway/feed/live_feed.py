"""The live feed of a gateway: the followed jobs, one Redis subscription, and a periodic poll of Postgres.

Events may be lost at any time, so the followed jobs are read from Postgres every two seconds, and whenever the
subscription is restored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, Self

import redis
import structlog

from trainwire.gateway.documents.job_documents import job_detail
from trainwire.gateway.feed.feed_queries import read_job_row, read_job_rows
from trainwire.gateway.feed.followed_job import FollowedJob
from trainwire.gateway.feed.heartbeats import Heartbeats
from trainwire.gateway.feed.job_feed import JobRow
from trainwire.gateway.feed.job_list import JobList
from trainwire.gateway.feed.read_pool import PostgresUnavailable, ReadPool
from trainwire.gateway.feed.subscription import Subscription
from trainwire.gateway.settings import GatewaySettings
from trainwire.schemas.events import TrainingDeleted, decode_event
from trainwire.schemas.keys import JOBS_CHANNEL, events_channel
from trainwire.schemas.wire.validation import InvalidMessage
from trainwire.stores.postgres.connections import open_engine
from trainwire.stores.rows.metric_names import MetricNames

CONNECTIONS: Final = 4
STATEMENT_TIMEOUT_S: Final = 20
POLL_EVERY_S: Final = 2.0
RESTART_PAUSE_S: Final = 1.0
CANCEL_AGAIN_S: Final = 5.0
"""Seconds after which a task is cancelled again; less could interrupt a task that closes its connections."""
LINGER_S: Final = 10.0
"""Seconds for which a job is still followed without clients: a reloaded page finds its rows in memory."""

log = structlog.get_logger("trainwire.gateway.feed.live_feed")


class LiveFeed:
    """Async context manager that runs the live feed.

    Routes use `acquire` and `release` for one job, `jobs` for the list, and `heartbeats`. `streams` is the client
    of the Redis with the streams.
    """

    def __init__(self, settings: GatewaySettings, names: MetricNames, streams: redis.Redis) -> None:
        # Connections of its own, so that slow requests do not delay the feed.
        self._engine = open_engine(
            settings, name="trainwire-feed", most=CONNECTIONS, statement_timeout_s=STATEMENT_TIMEOUT_S
        )
        self._read = ReadPool(self._engine)
        self._read_detail = partial(job_detail, names=names, mlflow_uri=settings.mlflow_shown_at)
        self._subscription = Subscription(
            settings.redis_url.get_secret_value(), on_message=self._receive, on_subscribed=self._compare_soon
        )
        self._followed: dict[int, FollowedJob] = {}
        self._runs: dict[int, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._must_poll = asyncio.Event()
        self.jobs = JobList(self._read)
        self.heartbeats = Heartbeats(self._read, streams)

    async def __aenter__(self) -> Self:
        self._subscription.add(JOBS_CHANNEL)
        for part in (self._subscription.run, self._poll_regularly, self.jobs.run, self.heartbeats.run):
            self._start(_run_for_ever(part))
        return self

    async def __aexit__(self, *_: object) -> None:
        # Until all have ended: `asyncio.wait_for` of Python 3.11 can lose a cancellation.
        while tasks := list(self._tasks):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=CANCEL_AGAIN_S)
        self._engine.dispose()

    async def acquire(self, job_id: int) -> FollowedJob:
        """Return the `FollowedJob` of a job; it is followed until the caller passes it to `release`.

        Raises `JobNotFound` if there is no such job, and `PostgresUnavailable` if Postgres cannot be read.
        """
        if job_id not in self._followed:
            row = await self._read(read_job_row, job_id, 0)
            if job_id not in self._followed:  # another connection may have added it meanwhile
                self._follow(job_id, row)
        job = self._followed[job_id]
        job.users += 1
        return job

    def release(self, job: FollowedJob) -> None:
        """Release a job returned by `acquire`.

        After the last release, the job is followed for `LINGER_S` seconds more.
        """
        job.users -= 1
        if not job.users:
            asyncio.get_running_loop().call_later(LINGER_S, self._end_if_unused, job)

    def _follow(self, job_id: int, row: JobRow) -> None:
        """Start to follow a job, and subscribe to its events.

        Changes before the subscription are found by the poll of Postgres that follows it.
        """
        job = self._followed[job_id] = FollowedJob(job_id, row, self._read, self._read_detail)
        task = self._runs[job_id] = self._start(job.run())
        task.add_done_callback(lambda _: self._end(job))
        self._subscription.add(events_channel(job_id))

    def _end_if_unused(self, job: FollowedJob) -> None:
        if not job.users and self._followed.get(job.job_id) is job:
            self._runs[job.job_id].cancel()

    def _end(self, job: FollowedJob) -> None:
        """Stop following a job whose task was cancelled or failed, and make its clients reconnect."""
        del self._followed[job.job_id], self._runs[job.job_id]
        self._subscription.remove(events_channel(job.job_id))
        job.close()

    def _receive(self, channel: str, data: bytes) -> None:
        if channel == JOBS_CHANNEL and not self.jobs.clients:
            return
        try:
            event = decode_event(data)
        except InvalidMessage as exc:
            # Possibly an event of a newer version: the next poll finds its rows.
            log.warning("feed.event_invalid", channel=channel, reason=str(exc))
            return
        if channel == JOBS_CHANNEL:
            self.jobs.receive(event)
            return
        if isinstance(event, TrainingDeleted):
            self._must_poll.set()  # the poll ends the feed of a job that is not found
        job = self._followed.get(event.job_id)
        if job is not None and channel == events_channel(event.job_id):
            job.receive(event)

    def _compare_soon(self, channel: str) -> None:
        """Request a poll of Postgres after a subscription to `channel`, as earlier events may have been lost."""
        if channel == JOBS_CHANNEL:
            self.jobs.compare_soon()
        self._must_poll.set()

    async def _poll_regularly(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._must_poll.wait(), POLL_EVERY_S)
            self._must_poll.clear()
            try:
                await self._poll(list(self._followed.values()))
            except PostgresUnavailable as exc:
                log.warning("feed.postgres_unavailable", reason=str(exc))

    async def _poll(self, jobs: Sequence[FollowedJob]) -> None:
        """Read the rows of followed jobs from Postgres; stop following a job that is not found there any more."""
        if not jobs:
            return
        positions = [job.feed.position for job in jobs]
        rows = await self._read(read_job_rows, {job.job_id: job.feed.state_events for job in jobs})
        for job, position in zip(jobs, positions, strict=True):
            row = rows.get(job.job_id)
            if row is not None and not position.is_beyond(row.position):
                job.update(row)
            elif self._followed.get(job.job_id) is job:
                # The job was deleted, or Postgres was restored from an older copy: clients have stale rows.
                log.warning("feed.rows_missing", job_id=job.job_id)
                self._runs[job.job_id].cancel()

    def _start(self, run: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(run)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("feed.failed", exc_info=error)


async def _run_for_ever(part: Callable[[], Awaitable[None]]) -> None:
    """Run a part of the feed; restart it after an unexpected error, which must not end the feed of all jobs."""
    while True:
        try:
            await part()
        except Exception:  # any error is one of ours: logged with its traceback, and the other parts go on
            log.exception("feed.failed", part=part.__qualname__)
        await asyncio.sleep(RESTART_PAUSE_S)
