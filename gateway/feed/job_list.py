"""The feed of all jobs: sends events of all jobs, and finds jobs that changed without an event.

Events of different jobs have no common `seq` that would reveal lost ones, so the list is compared with Postgres
every few seconds.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import structlog
from sqlalchemy import Connection

from trainwire.gateway.documents.job_documents import job_items_of
from trainwire.gateway.documents.job_types import JobItem
from trainwire.gateway.feed.client_queues import ClientQueue
from trainwire.gateway.feed.feed_queries import ListedColumns, read_deleted, read_listed
from trainwire.gateway.feed.feed_state import with_metrics_of
from trainwire.gateway.feed.frames import Frame, FrameBatch, event_frame, gateway_frame, type_of
from trainwire.gateway.feed.read_pool import PostgresUnavailable, ReadPool, SharedResult
from trainwire.schemas.events import Event, TrainingDeleted
from trainwire.schemas.tables.kinds import without_rows

PAUSE_S: Final = 0.25
"""Seconds between batches of frames; a batch has only the last event of each type and job."""
COMPARE_EVERY_S: Final = 5.0
SNAPSHOT_FRESH_S: Final = 0.5
KEPT_BATCHES: Final = 64
MAX_QUEUED: Final = 20_000

log = structlog.get_logger("trainwire.gateway.feed.job_list")


class _Snapshot(NamedTuple):
    batch: FrameBatch
    number: int
    """Number of the last batch that was sent before the snapshot was read."""


class JobList:
    """The clients that follow the list of all jobs, and the events queued for them."""

    def __init__(self, read: ReadPool) -> None:
        self._read = read
        self._clients: dict[ClientQueue, None] = {}
        self._queued: dict[tuple[int, str], Event] = {}
        self._listed: dict[int, ListedColumns] = {}
        self._number = 0
        self._recent: deque[tuple[int, FrameBatch]] = deque(maxlen=KEPT_BATCHES)
        self._has_input = asyncio.Event()
        self._must_compare = False
        self._snapshot = SharedResult(self._make_snapshot, SNAPSHOT_FRESH_S)

    @property
    def clients(self) -> int:
        """Number of clients that receive new events."""
        return len(self._clients)

    def receive(self, event: Event) -> None:
        """Queue an event of any job, without its rows; it replaces a queued event of the same type and job.

        Events are discarded while MAX_QUEUED are queued; the next comparison with Postgres finds their changes.
        """
        key = (event.job_id, type_of(event))
        event = with_metrics_of(self._queued.pop(key, None), without_rows(event))
        if len(self._queued) < MAX_QUEUED:
            self._queued[key] = event
        self._has_input.set()

    def compare_soon(self) -> None:
        """Make `run` compare the list with Postgres soon, because events may have been lost."""
        self._must_compare = True
        self._has_input.set()

    async def add_client(self, queue: ClientQueue) -> None:
        """Send a client a snapshot of the list, and from then on new events.

        Raises `PostgresUnavailable` if the list cannot be read.
        """
        while True:
            snapshot = await self._snapshot.get()
            if not self._recent or self._recent[0][0] <= snapshot.number + 1:
                break
            self._snapshot.invalidate()
        queue.send(snapshot.batch)
        for number, batch in self._recent:
            if number > snapshot.number:
                queue.send(batch)
        self._clients[queue] = None
        self.compare_soon()  # events are ignored while there are no clients

    def remove_client(self, queue: ClientQueue) -> None:
        """Stop sending events to a client."""
        self._clients.pop(queue, None)

    async def run(self) -> None:
        """Send queued events and changed jobs to all clients until cancelled."""
        clock = asyncio.get_running_loop().time
        compare_at = clock() + COMPARE_EVERY_S
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._has_input.wait(), max(compare_at - clock(), 0.01))
            self._has_input.clear()
            if clock() >= compare_at:
                self._must_compare = True
                compare_at = clock() + COMPARE_EVERY_S
            try:
                await self._send_queued()
            except PostgresUnavailable as exc:
                log.warning("feed.postgres_unavailable", reason=str(exc))
            await asyncio.sleep(PAUSE_S)

    async def _send_queued(self) -> None:
        queued, self._queued = self._queued, {}
        must_compare, self._must_compare = self._must_compare, False
        if not self._clients:
            return
        frames = []
        if must_compare or any(map(self._changes_list, queued.values())):
            frames += await self._changed_jobs()
        frames += [
            event_frame(event)
            for event in queued.values()
            if event.job_id in self._listed and not isinstance(event, TrainingDeleted)
        ]
        if frames:
            self._send(FrameBatch(frames))

    def _changes_list(self, event: Event) -> bool:
        """Return whether an event adds a job to the list or removes one."""
        return isinstance(event, TrainingDeleted) or event.job_id not in self._listed

    async def _changed_jobs(self) -> list[Frame]:
        """Read the list from Postgres; return a frame for each job that was added, changed or deleted."""
        listed = await self._read(read_listed)
        changed = [job_id for job_id, columns in listed.items() if self._listed.get(job_id) != columns]
        items = await self._read(job_items_of, changed) if changed else ()
        removed = self._listed.keys() - listed.keys()
        deleted = await self._read(read_deleted, removed) if removed else []
        self._listed = listed
        frames = [gateway_frame("job", job=item) for item in items]
        return frames + [event_frame(TrainingDeleted(job_id=job_id, attempt=0)) for job_id in deleted]

    def _send(self, batch: FrameBatch) -> None:
        self._number += 1
        self._recent.append((self._number, batch))
        for queue in list(self._clients):
            if not queue.send(batch):
                self.remove_client(queue)
                queue.resync()

    async def _make_snapshot(self) -> _Snapshot:
        number = self._number
        listed, items = await self._read(_read_all)
        if not self._clients:
            self._listed = listed  # with clients, the next comparison must still find the changes for them
        return _Snapshot(FrameBatch([gateway_frame("snapshot", jobs=items)]), number)


def _read_all(connection: Connection) -> tuple[dict[int, ListedColumns], Sequence[JobItem]]:
    listed = read_listed(connection)
    return listed, job_items_of(connection, list(listed))
