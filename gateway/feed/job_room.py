"""One job with listeners: its feed, its clients, and the task that has the one said to the others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import structlog

from trainwire.gateway.feed.client_queues import MustComeAgain, Outlet
from trainwire.gateway.feed.feed_queries import read_look, read_newest
from trainwire.gateway.feed.frames import Bundle, bundle_of, own_frame
from trainwire.gateway.feed.job_feed import JobFeed, Look
from trainwire.gateway.feed.merging import Said
from trainwire.gateway.feed.positions import BadPosition, Position
from trainwire.gateway.feed.read_pool import Backlog, Documents, PostgresAway, Reader, Shared
from trainwire.gateway.feed.rows import Hole, Row
from trainwire.schemas.events import Event

CLIENT_PAUSE_S: Final = 25e-6
LONGEST_PAUSE_S: Final = 0.1
"""Frames of a job leave this far apart: a share for each client, so that few are served at once, many 20 times a
second."""
CLIENTS_AT_ONCE: Final = 200
"""After so many writes others have their turn on the event loop."""
FIRST_FRAME_FRESH_S: Final = 0.5
"""Clients that come together get the same first frame; what is said since then follows."""
AWAY_PAUSE_S: Final = 1.0

log = structlog.get_logger("trainwire.gateway.feed.job_room")


class First(NamedTuple):
    """The first frame of a client, and where it then is."""

    bundle: Bundle
    look: Look


class Watch:
    """What one gateway does for one job, however many follow it."""

    def __init__(self, job_id: int, look: Look, read: Reader, documents: Documents) -> None:
        self.job_id = job_id
        self.users = 0
        """Who holds on to this, whether they are clients yet or not."""
        self._feed = JobFeed(job_id, look)
        self._read = read
        self._documents = documents
        self._backlog = Backlog(read, job_id)
        self._clients: dict[Outlet, None] = {}
        self._has_news = asyncio.Event()
        self._has_moved = asyncio.Event()
        self._is_over = False
        self._snapshot = Shared(self._make_snapshot, FIRST_FRAME_FRESH_S)
        self._resumed = Shared(self._make_resumed, FIRST_FRAME_FRESH_S)

    @property
    def position(self) -> Position:
        """What live clients have."""
        return self._feed.position

    @property
    def heard(self) -> int:
        """How much has been heard of the job's state."""
        return self._feed.heard

    @property
    def clients(self) -> int:
        """How many are live."""
        return len(self._clients)

    def hear(self, event: Event) -> None:
        """Take what the notifier said."""
        self._feed.hear(event)
        self._has_news.set()

    def learn(self, look: Look) -> None:
        """Take what Postgres says."""
        self._feed.learn(look)
        self._has_news.set()

    async def run(self) -> None:
        """Say what there is to say, until cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            await self._has_news.wait()
            self._has_news.clear()
            began_at = clock()
            try:
                await self._say_all()
            except PostgresAway as away:
                log.warning("feed.postgres_away", job_id=self.job_id, reason=str(away))
                self._has_news.set()
                await asyncio.sleep(AWAY_PAUSE_S)
            pause_s = min(len(self._clients) * CLIENT_PAUSE_S, LONGEST_PAUSE_S)
            await asyncio.sleep(max(began_at + pause_s - clock(), 0))

    async def first(self, after: Position | None) -> First:
        """Return what a client gets first; raise `BadPosition` where it is further than the job."""
        if after is None:
            return await self._snapshot.get()
        first = await self._resumed.get()
        if after.is_beyond(first.look.position):
            self._resumed.forget()  # what was read a moment ago may lack what another gateway has told since
            first = await self._resumed.get()
        if after.is_beyond(first.look.position):
            raise BadPosition(f"{after} is beyond what job {self.job_id} has ({first.look.position})")
        look = first.look._replace(position=after)
        return First(first.bundle.at(str(after)), look)

    async def follow(self, outlet: Outlet, position: Position) -> None:
        """Say to a client what it lacks, until it is where all are; from then on it is told with them.

        Raises `MustComeAgain` or `PostgresAway`.
        """
        while (missed := await self._missed(position)) is not None:
            position = missed.position
            outlet.send(bundle_of([missed]))
            await outlet.drained()
        if self._is_over:
            raise MustComeAgain
        self._clients[outlet] = None

    def leave(self, outlet: Outlet) -> None:
        """Forget a client."""
        self._clients.pop(outlet, None)

    def fail(self) -> None:
        """Have all clients come again: nobody can be told more from here."""
        self._is_over = True
        self._has_moved.set()
        for outlet in list(self._clients):
            self._drop(outlet)

    async def _missed(self, position: Position) -> Said | None:
        """Return the next that somebody at `position` lacks; None where that is nothing, and still is."""
        while position.is_beyond(self._feed.position):
            # Read from Postgres before the feed had it: the feed was told, and is about to say it.
            if self._is_over:
                raise MustComeAgain
            self._has_moved.clear()
            await self._has_moved.wait()
        missed = self._feed.missed(position)
        if isinstance(missed, Hole):
            rows = await self._backlog.rows(missed)
            if rows.last <= missed.have:
                raise MustComeAgain  # what was there is gone
            return self._feed.said_of(rows, position)
        return missed

    async def _say_all(self) -> None:
        while True:
            hole = self._feed.advance()
            await self._say(self._feed.take())
            if hole is None:
                return
            self._feed.fill((await self._backlog.rows(hole)).upto(hole.last))

    async def _say(self, said: Sequence[Said]) -> None:
        """Send frames to all who are live now; who joins meanwhile has them already."""
        if not said:
            return
        self._has_moved.set()
        bundle = bundle_of(said)
        for number, outlet in enumerate(list(self._clients), 1):
            if outlet in self._clients and not outlet.send(bundle):
                self._drop(outlet)
            if number % CLIENTS_AT_ONCE == 0:
                await asyncio.sleep(0)

    def _drop(self, outlet: Outlet) -> None:
        log.info("feed.resync", job_id=self.job_id)
        self.leave(outlet)
        outlet.resync()

    async def _make_snapshot(self) -> First:
        look = await self._look()
        logs, checkpoints, detail = await self._read(self._rows_of_snapshot, look.position)
        fields = {"job": detail, "logs": logs, "checkpoints": checkpoints}
        return First(own_frame("snapshot", str(look.position), **fields), look)

    async def _make_resumed(self) -> First:
        look = await self._look()
        detail = await self._read(self._documents.detail, self.job_id)
        return First(own_frame("resumed", str(look.position), job=detail), look)

    async def _look(self) -> Look:
        look = await self._read(read_look, self.job_id, self._feed.heard)
        self.learn(look)
        return look

    def _rows_of_snapshot(self, connection: Any, position: Position) -> tuple[Any, Any, Any]:
        logs = read_newest(connection, self.job_id, "logs", position.logs)
        checkpoints = read_newest(connection, self.job_id, "checkpoints", position.checkpoints)
        return _json(logs), _json(checkpoints), self._documents.detail(connection, self.job_id)


def _json(rows: Sequence[Row]) -> list[Any]:
    return [row.json for row in rows]
