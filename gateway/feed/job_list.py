"""What the list of all jobs is told: the events of the channel of all jobs, and each job that changed unheard.

These events have no `seq` that covers all of them, so Postgres is compared with what was known every few seconds.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeAlias

import structlog
from msgspec.structs import replace

from trainwire.gateway.feed.client_queues import Outlet
from trainwire.gateway.feed.feed_queries import Mark, read_deleted, read_marks
from trainwire.gateway.feed.frames import Bundle, Frame, own_frame, tag_of
from trainwire.gateway.feed.read_pool import Documents, PostgresAway, Reader, Shared
from trainwire.schemas.events import Event, TrainingDeleted, TrainingProgress, encode_event
from trainwire.schemas.kinds import without_rows

PAUSE_S: Final = 0.25
"""Frames leave this far apart, and of what was said in between the last of each type and job."""
COMPARE_EVERY_S: Final = 5.0
SNAPSHOT_FRESH_S: Final = 0.5
KEPT_BUNDLES: Final = 64
MAX_HEARD: Final = 20_000

log = structlog.get_logger("trainwire.gateway.feed.job_list")

_Key: TypeAlias = tuple[int, str]


class _Snapshot(NamedTuple):
    bundle: Bundle
    said: int
    """How many bundles had been said when its reading began."""


class JobList:
    """The clients that look at all jobs."""

    def __init__(self, read: Reader, documents: Documents) -> None:
        self._read = read
        self._documents = documents
        self._clients: dict[Outlet, None] = {}
        self._heard: dict[_Key, Event] = {}
        self._marks: dict[int, Mark] = {}
        self._said = 0
        self._recent: deque[tuple[int, Bundle]] = deque(maxlen=KEPT_BUNDLES)
        self._has_news = asyncio.Event()
        self._must_compare = False
        self._snapshot = Shared(self._make_snapshot, SNAPSHOT_FRESH_S)

    @property
    def clients(self) -> int:
        """How many are live."""
        return len(self._clients)

    def hear(self, event: Event) -> None:
        """Take what the notifier said, without its rows: a list shows the newest values only."""
        key = (event.job_id, tag_of(event))
        before = self._heard.pop(key, None)
        light = without_rows(event)
        if isinstance(light, TrainingProgress) and isinstance(before, TrainingProgress) and light.metrics is None:
            light = replace(light, metrics=before.metrics)
        if len(self._heard) < MAX_HEARD:
            self._heard[key] = light
        self._has_news.set()

    def compare(self) -> None:
        """Look at Postgres soon: something may have been missed."""
        self._must_compare = True
        self._has_news.set()

    async def follow(self, outlet: Outlet) -> None:
        """Send all jobs, then have the client told with the others; raise `PostgresAway`."""
        while True:
            snapshot = await self._snapshot.get()
            if not self._recent or self._recent[0][0] <= snapshot.said + 1:
                break
            self._snapshot.forget()
        outlet.send(snapshot.bundle)
        for number, bundle in self._recent:
            if number > snapshot.said:
                outlet.send(bundle)
        self._clients[outlet] = None
        self.compare()  # without a client nothing was heard

    def leave(self, outlet: Outlet) -> None:
        """Forget a client."""
        self._clients.pop(outlet, None)

    async def run(self) -> None:
        """Say what there is to say, until cancelled."""
        clock = asyncio.get_running_loop().time
        compare_at = clock() + COMPARE_EVERY_S
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._has_news.wait(), max(compare_at - clock(), 0.01))
            self._has_news.clear()
            if clock() >= compare_at:
                self._must_compare = True
                compare_at = clock() + COMPARE_EVERY_S
            try:
                await self._say_all()
            except PostgresAway as away:
                log.warning("feed.postgres_away", reason=str(away))
            await asyncio.sleep(PAUSE_S)

    async def _say_all(self) -> None:
        heard, self._heard = self._heard, {}
        must_compare, self._must_compare = self._must_compare, False
        if not self._clients:
            return
        frames = []
        if must_compare or any(map(self._is_unforeseen, heard.values())):
            frames += await self._changed()
        frames += [
            Frame(tag, encode_event(event))
            for (job_id, tag), event in heard.items()
            if job_id in self._marks and not isinstance(event, TrainingDeleted)
        ]
        if frames:
            self._send(Bundle(frames))

    def _is_unforeseen(self, event: Event) -> bool:
        """Tell whether an event shows that there are other jobs than at the last comparison."""
        return isinstance(event, TrainingDeleted) or event.job_id not in self._marks

    async def _changed(self) -> list[Frame]:
        """Return a frame for each job that is not as it was at the last comparison, new and deleted ones too."""
        marks = await self._read(read_marks)
        changed = [job_id for job_id, mark in marks.items() if self._marks.get(job_id) != mark]
        items = await self._read(self._documents.items, changed) if changed else ()
        gone = self._marks.keys() - marks.keys()
        deleted = await self._read(read_deleted, gone) if gone else []
        self._marks = marks
        return [_job_frame(item) for item in items] + [_deleted_frame(job_id) for job_id in deleted]

    def _send(self, bundle: Bundle) -> None:
        self._said += 1
        self._recent.append((self._said, bundle))
        for outlet in list(self._clients):
            if not outlet.send(bundle):
                self.leave(outlet)
                outlet.resync()

    async def _make_snapshot(self) -> _Snapshot:
        said = self._said
        marks, items = await self._read(self._read_all)
        if not self._clients:
            self._marks = marks  # with clients, those of the last comparison stand until the next
        return _Snapshot(own_frame("snapshot", jobs=items), said)

    def _read_all(self, connection: Any) -> tuple[dict[int, Mark], Sequence[object]]:
        marks = read_marks(connection)
        return marks, self._documents.items(connection, list(marks))


def _deleted_frame(job_id: int) -> Frame:
    event = TrainingDeleted(job_id=job_id, attempt=0)
    return Frame(tag_of(event), encode_event(event))


def _job_frame(item: object) -> Frame:
    (frame,) = own_frame("job", job=item).frames
    return frame
