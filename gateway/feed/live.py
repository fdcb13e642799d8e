"""The live half of the gateway: jobs that somebody follows, one subscription, and a slow look at Postgres.

Notifications may be lost at any time, so every two seconds, and whenever Redis is back, Postgres is asked how far
the jobs with listeners are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final, Self

import structlog
from sqlalchemy import Engine

from trainwire.gateway.feed.feed_queries import read_look, read_looks
from trainwire.gateway.feed.job_feed import Look
from trainwire.gateway.feed.job_list import JobList
from trainwire.gateway.feed.job_room import Watch
from trainwire.gateway.feed.read_pool import Documents, PostgresAway, Reader
from trainwire.gateway.feed.subscription import Subscription
from trainwire.schemas.events import TrainingDeleted, decode_event
from trainwire.schemas.keys import JOBS_CHANNEL, events_channel
from trainwire.schemas.validation import InvalidMessage

LOOK_EVERY_S: Final = 2.0
RESTART_PAUSE_S: Final = 1.0
LINGER_S: Final = 10.0
"""How long a job is watched after its last client: a page that is loaded again finds all in memory."""

log = structlog.get_logger("trainwire.gateway.feed.live")


class Feed:
    """Opened and closed with the gateway; `watch` and `jobs` are what connections need of it."""

    def __init__(self, redis_url: str, engine: Engine, documents: Documents) -> None:
        self._read = Reader(engine)
        self._documents = documents
        self._subscription = Subscription(redis_url, on_message=self._hear, on_begin=self._begin)
        self._watches: dict[int, Watch] = {}
        self._runs: dict[int, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._look_now = asyncio.Event()
        self.jobs = JobList(self._read, documents)

    async def __aenter__(self) -> Self:
        self._subscription.add(JOBS_CHANNEL)
        for part in (self._subscription.run, self._look_around, self.jobs.run):
            self._keep(_run_for_ever(part))
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def is_connected(self) -> bool:
        """Tell whether the subscription stands."""
        return self._subscription.is_connected

    @property
    def clients(self) -> int:
        """How many connections are live."""
        return self.jobs.clients + sum(watch.clients for watch in self._watches.values())

    async def watch(self, job_id: int) -> Watch:
        """Return the watch of a job, for `release` to give back; raise `UnknownJob` or `PostgresAway`."""
        if job_id not in self._watches:
            look = await self._read(read_look, job_id, 0)
            if job_id not in self._watches:  # nobody else was faster
                self._open(job_id, look)
        watch = self._watches[job_id]
        watch.users += 1
        return watch

    def release(self, watch: Watch) -> None:
        """Give a watch back; without users it ends after a while."""
        watch.users -= 1
        if not watch.users:
            asyncio.get_running_loop().call_later(LINGER_S, self._end_if_unused, watch)

    def _open(self, job_id: int, look: Look) -> None:
        """Begin to watch; what is missed until the channel begins is found by the look that follows that."""
        watch = self._watches[job_id] = Watch(job_id, look, self._read, self._documents)
        task = self._runs[job_id] = self._keep(watch.run())
        task.add_done_callback(lambda _: self._end(watch))
        self._subscription.add(events_channel(job_id))

    def _end_if_unused(self, watch: Watch) -> None:
        if not watch.users and self._watches.get(watch.job_id) is watch:
            self._runs[watch.job_id].cancel()

    def _end(self, watch: Watch) -> None:
        """Forget a watch that has ended, whether it was not needed any more or failed."""
        del self._watches[watch.job_id], self._runs[watch.job_id]
        self._subscription.remove(events_channel(watch.job_id))
        watch.fail()

    def _hear(self, channel: str, data: bytes) -> None:
        if channel == JOBS_CHANNEL and not self.jobs.clients:
            return
        try:
            event = decode_event(data)
        except InvalidMessage as exc:
            # Of a newer version, perhaps: its rows are found by the next look.
            log.warning("feed.not_understood", channel=channel, reason=str(exc))
            return
        if channel == JOBS_CHANNEL:
            self.jobs.hear(event)
            return
        if isinstance(event, TrainingDeleted):
            self._look_now.set()  # ends the watch
        watch = self._watches.get(event.job_id)
        if watch is not None and channel == events_channel(event.job_id):
            watch.hear(event)

    def _begin(self, channel: str) -> None:
        """A channel is heard from now on: what was said before must be looked up."""
        if channel == JOBS_CHANNEL:
            self.jobs.compare()
        self._look_now.set()

    async def _look_around(self) -> None:
        """Ask Postgres how far the watched jobs are, now and then and when a channel has begun."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._look_now.wait(), LOOK_EVERY_S)
            self._look_now.clear()
            try:
                await self._look(list(self._watches.values()))
            except PostgresAway as away:
                log.warning("feed.postgres_away", reason=str(away))

    async def _look(self, watches: Sequence[Watch]) -> None:
        said = [watch.position for watch in watches]
        looks = await self._read(read_looks, {watch.job_id: watch.heard for watch in watches}) if watches else {}
        for watch, position in zip(watches, said, strict=True):
            look = looks.get(watch.job_id)
            if look is not None and not position.is_beyond(look.position):
                watch.learn(look)
            elif self._watches.get(watch.job_id) is watch:
                # It was deleted, or another database, or an older copy of it: clients have what is no longer so.
                log.warning("feed.rows_are_gone", job_id=watch.job_id)
                self._runs[watch.job_id].cancel()

    def _keep(self, run: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(run)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("feed.failed", exc_info=error)


async def _run_for_ever(part: Callable[[], Awaitable[None]]) -> None:
    """Run a part that all jobs need; one message that nobody foresaw must not end the feed of all others."""
    while True:
        try:
            await part()
        except Exception:
            log.exception("feed.failed", part=part.__qualname__)
        await asyncio.sleep(RESTART_PAUSE_S)
