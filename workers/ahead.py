"""Reads ahead of a backlog that a few jobs fill, so that the messages of other jobs need not wait for its end.

The entries behind the head of a stream are looked through in order, each once. A job's entries are taken, all that
are there, or from one of them on they are left, until the head of the stream has passed the last that was left: so
the messages of a source never change their order.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Final, TypeAlias

import msgspec
import redis

from schemas.routes import ahead_key
from workers.decoding import RawEntry
from workers.errors import Unavailable
from workers.streams import IngestStream, redis_errors

JobField: TypeAlias = bytes
"""The field `job` of an entry as it is; empty where there is none."""

HEAVY_SHARE: Final = 1 / 8
"""A job that has more of a batch, in entries or bytes, is left: it is what the others wait for."""
MAX_TAKEN_BYTES: Final = 1024 * 1024
MAX_TAKEN_OF_A_JOB: Final = 256 * 1024
MAX_SEEN: Final = 200_000
MAX_LOOK_S: Final = 1.0
MAX_LOOK_HALTED_S: Final = 2.0
"""Where nothing else is done in between."""
MAX_LEFT: Final = 1000
"""Jobs; where so many fill the backlog nobody goes before another."""
_PAGE: Final = 1000
_PAGE_BYTES: Final = 1024 * 1024
_TTL_S: Final = 600


class State(msgspec.Struct):
    """Up to which id the stream was looked through, and the last id that was left of each job."""

    seen: str = "0-0"
    left: dict[str, str] = {}


_decode = msgspec.json.Decoder(State).decode


def job_of(entry: RawEntry) -> JobField:
    """Return which job an entry names, without a look at its value."""
    return entry.fields.get(b"job", b"")[:20]


def heavy_jobs(entries: Collection[RawEntry]) -> set[JobField]:
    """Return the jobs that have a large share of these entries."""
    counts: Counter[JobField] = Counter()
    sizes: Counter[JobField] = Counter()
    for entry in entries:
        job = job_of(entry)
        counts[job] += 1
        sizes[job] += entry.held_bytes
    most, most_bytes = HEAVY_SHARE * counts.total(), HEAVY_SHARE * sizes.total()
    return {job for job in counts if counts[job] > most or sizes[job] > most_bytes}


class Ahead:
    """The look ahead in one stream; what it knows is kept in Redis, for the next drain may be another process."""

    def __init__(self, client: redis.Redis, stream: IngestStream) -> None:
        self._client = client
        self._stream = stream
        self._key = ahead_key(stream.key)
        self._state = State()
        self.is_at_end = True
        self._has_looked = False

    def look(
        self, through_id: str, heavy: Iterable[JobField], entry_bytes: int, most_s: float = MAX_LOOK_S
    ) -> list[RawEntry]:
        """Return entries behind `through_id` of jobs that are neither heavy nor left, oldest first.

        `entry_bytes` is about the size of an entry here, by which the pages are made. The look ends after `most_s`
        seconds.
        """
        state = self._state = self._loaded()
        head = _number(through_id)
        state.left = {job: last for job, last in state.left.items() if _number(last) > head}
        if _number(state.seen) < head:
            state.seen = through_id
        names = {_name(job) for job in heavy}
        taken: list[RawEntry] = []
        sizes: Counter[str] = Counter()
        looked, page_size = 0, max(1, min(_PAGE, _PAGE_BYTES // max(1, entry_bytes)))
        self.is_at_end, self._has_looked = False, True
        began = time.monotonic()
        while (
            time.monotonic() - began < most_s
            and looked < MAX_SEEN
            and len(state.left) < MAX_LEFT
            and sizes.total() < MAX_TAKEN_BYTES
        ):
            page = self._stream.page(f"({state.seen}", page_size)
            looked += len(page)
            for entry in page:
                job = _name(job_of(entry))
                state.seen = entry.entry_id
                if job in names or job in state.left or sizes[job] > MAX_TAKEN_OF_A_JOB:
                    state.left[job] = entry.entry_id
                    continue
                sizes[job] += entry.held_bytes
                taken.append(entry)
                if sizes.total() >= MAX_TAKEN_BYTES:
                    break
            if len(page) < page_size:
                self.is_at_end = True
                break
        return taken

    def leave(self, entries: Iterable[RawEntry]) -> None:
        """Note that these entries were not taken after all: what follows of their jobs is left too."""
        for entry in entries:
            job = _name(job_of(entry))
            known = self._state.left.get(job, "0-0")
            self._state.left[job] = max(known, entry.entry_id, key=_number)

    def keep(self, taken: Iterable[RawEntry]) -> None:
        """After the commit: delete what was taken, and remember how far the look went, if there was one."""
        if not self._has_looked:
            return
        self._has_looked = False
        with redis_errors():
            if ids := [entry.entry_id for entry in taken]:
                self._client.xdel(self._stream.key, *ids)
        with suppress(Unavailable), redis_errors():  # a full Redis: it is looked through again
            self._client.set(self._key, msgspec.json.encode(self._state), ex=_TTL_S)

    def _loaded(self) -> State:
        with redis_errors():
            known = self._client.get(self._key)
        return _decode(known) if isinstance(known, bytes) else State()


def _name(job: JobField) -> str:
    return job.decode("latin-1")


def _number(entry_id: str) -> tuple[int, int]:
    millis, _, number = entry_id.partition("-")
    return int(millis), int(number or 0)
