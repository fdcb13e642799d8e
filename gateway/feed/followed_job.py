"""A job that clients follow: runs its feed, and sends the events to the clients' queues."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import structlog
from sqlalchemy import Connection

from trainwire.gateway.documents.job_types import JobDetail
from trainwire.gateway.feed.client_queues import ClientQueue, MustReconnect
from trainwire.gateway.feed.feed_queries import read_job_row, read_newest
from trainwire.gateway.feed.feed_rows import FeedPosition, InvalidPosition, RowGap
from trainwire.gateway.feed.frames import Frame, FrameBatch, encode_events, gateway_frame
from trainwire.gateway.feed.job_feed import FeedEvent, JobFeed, JobRow
from trainwire.gateway.feed.read_pool import PostgresUnavailable, ReadPool, SharedResult, SharedRows
from trainwire.schemas.events import Event
from trainwire.schemas.tables.kinds import RowKind

PAUSE_PER_CLIENT_S: Final = 25e-6
MAX_PAUSE_S: Final = 0.1
"""Maximum seconds between two writes of a job's frames to its clients.

The pause is proportional to the number of clients (`PAUSE_PER_CLIENT_S`), so events are merged when there are
many.
"""
CLIENTS_AT_ONCE: Final = 200
"""Number of clients that are written to before other tasks of the event loop may run."""
FIRST_FRAME_FRESH_S: Final = 0.5
"""Seconds for which new clients share one first frame; they also get the events since it was made."""
RETRY_PAUSE_S: Final = 1.0

ReadDetail: TypeAlias = Callable[[Connection, int], JobDetail | None]
log = structlog.get_logger("trainwire.gateway.feed.followed_job")


class FirstFrame(NamedTuple):
    """The first frame for a client, and the client's position after it."""

    frame: Frame
    position: FeedPosition


class FollowedJob:
    """The feed of one job and the queues of its clients."""

    def __init__(self, job_id: int, row: JobRow, read: ReadPool, read_detail: ReadDetail) -> None:
        self.job_id = job_id
        self.users = 0
        """Number of connections that have acquired this job, including those that are not clients yet."""
        self.feed = JobFeed(job_id, row)
        self._read = read
        self._read_detail = read_detail
        self._rows = SharedRows(read, job_id)
        self._clients: dict[ClientQueue, None] = {}
        self._has_input = asyncio.Event()
        self._has_moved = asyncio.Event()
        self._is_closed = False
        self._snapshot = SharedResult(self._make_snapshot, FIRST_FRAME_FRESH_S)
        self._resumed = SharedResult(self._make_resumed, FIRST_FRAME_FRESH_S)

    def receive(self, event: Event) -> None:
        """Queue an event from the job's Redis channel; `run` sends it to the clients."""
        self.feed.receive(event)
        self._has_input.set()

    def update(self, row: JobRow) -> None:
        """Queue the job's current row of training_jobs; `run` sends its changes to the clients."""
        self.feed.update(row)
        self._has_input.set()

    async def run(self) -> None:
        """Send queued events to all clients until cancelled.

        If rows cannot be read from Postgres, retries after RETRY_PAUSE_S.
        """
        clock = asyncio.get_running_loop().time
        while True:
            await self._has_input.wait()
            self._has_input.clear()
            began_at = clock()
            try:
                await self._send_queued()
            except PostgresUnavailable as exc:
                log.warning("feed.postgres_unavailable", job_id=self.job_id, reason=str(exc))
                self._has_input.set()
                await asyncio.sleep(RETRY_PAUSE_S)
            pause_s = min(len(self._clients) * PAUSE_PER_CLIENT_S, MAX_PAUSE_S)
            await asyncio.sleep(max(began_at + pause_s - clock(), 0))

    async def first_frame(self, after: FeedPosition | None) -> FirstFrame:
        """Return a `snapshot` frame, or a `resumed` frame for a client that has the position `after`.

        Raises `InvalidPosition` if the position is after the job's last row, and `PostgresUnavailable` if Postgres
        cannot be read.
        """
        if after is None:
            return await self._snapshot.get()
        first = await self._resumed.get()
        if after.is_beyond(first.position):
            # Another gateway may have sent newer rows than the shared result has: read once more.
            self._resumed.invalidate()
            first = await self._resumed.get()
        if after.is_beyond(first.position):
            raise InvalidPosition(
                f"{after} is beyond the rows of job {self.job_id} ({first.position}): connect without a position"
            )
        return FirstFrame(first.frame.at(str(after)), after)

    async def add_client(self, queue: ClientQueue, first: FirstFrame) -> None:
        """Send a client its first frame and the events since then; from then on it receives new events.

        A client that is too slow gets a `resync` frame and must reconnect. Raises `PostgresUnavailable` if missed
        rows cannot be read.
        """
        queue.send(FrameBatch([first.frame]))
        position = first.position
        try:
            while (missed := await self._next_missed(position)) is not None:
                position = missed.position
                queue.send(encode_events([missed]))
                await queue.wait_for_room()
        except MustReconnect:
            queue.resync()
        else:
            self._clients[queue] = None

    def remove_client(self, queue: ClientQueue) -> None:
        """Stop sending events to a client."""
        self._clients.pop(queue, None)

    def close(self) -> None:
        """Make all clients reconnect, with a `resync` frame."""
        self._is_closed = True
        self._has_moved.set()
        for queue in list(self._clients):
            self._drop(queue)

    async def _next_missed(self, position: FeedPosition) -> FeedEvent | None:
        """Return the first event that a client at `position` has not received; None if it has received all.

        Raises `MustReconnect` if the job is not followed any more, or the rows of the event were deleted.
        """
        # The first frame was read from Postgres, so it may have rows that the feed has not processed yet.
        while position.is_beyond(self.feed.position) and not self._is_closed:
            self._has_moved.clear()
            await self._has_moved.wait()
        if self._is_closed:
            raise MustReconnect
        missed = self.feed.next_missed(position)
        if not isinstance(missed, RowGap):
            return missed
        batch = await self._rows.read(missed)
        if batch.last <= missed.after:
            raise MustReconnect  # the rows were deleted
        return self.feed.missed_rows(batch, position)

    async def _send_queued(self) -> None:
        while True:
            gap = self.feed.advance()
            await self._send(self.feed.take())
            if gap is None:
                return
            self.feed.fill((await self._rows.read(gap)).up_to(gap.last))

    async def _send(self, events: Sequence[FeedEvent]) -> None:
        if not events:
            return
        self._has_moved.set()
        batch = encode_events(events)
        # Clients that are added during the loop have these events already.
        for number, queue in enumerate(list(self._clients), 1):
            if queue in self._clients and not queue.send(batch):
                self._drop(queue)
            if number % CLIENTS_AT_ONCE == 0:
                await asyncio.sleep(0)

    def _drop(self, queue: ClientQueue) -> None:
        log.info("feed.resync", job_id=self.job_id)
        self.remove_client(queue)
        queue.resync()

    async def _make_snapshot(self) -> FirstFrame:
        position = await self._read_position()
        return FirstFrame(await self._read(self._snapshot_frame, position), position)

    async def _make_resumed(self) -> FirstFrame:
        position = await self._read_position()
        detail = await self._read(self._read_detail, self.job_id)
        return FirstFrame(gateway_frame("resumed", str(position), job=detail), position)

    async def _read_position(self) -> FeedPosition:
        row = await self._read(read_job_row, self.job_id, self.feed.state_events)
        self.update(row)
        return row.position

    def _snapshot_frame(self, connection: Connection, position: FeedPosition) -> Frame:
        def newest(kind: RowKind) -> list[Any]:
            return [row.json for row in read_newest(connection, self.job_id, kind, position.of(kind))]

        fields = {"logs": newest("logs"), "checkpoints": newest("checkpoints")}
        detail = self._read_detail(connection, self.job_id)
        return gateway_frame("snapshot", str(position), job=detail, **fields)
