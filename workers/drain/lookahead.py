"""Reads ahead in a long stream, so that messages of other sources do not wait behind the many messages of a few.

A look-ahead reads the entries behind the batch in order, each once. In a halted stream, whose drain has stopped
because nearly all entries are invalid, it starts at the first entry. From one source it either takes every entry,
or skips all entries from a certain one on until the head of the stream has passed the last skipped one. So the
messages of a source never change their order.

A trainer can send entries in the name of another job, but it does not know the names of that job's sources: so no
decision depends on the job alone. Entries without a valid job and source stay in the stream and do not affect any
source.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from contextlib import suppress
from functools import lru_cache
from hashlib import blake2b
from itertools import takewhile
from typing import Final, TypeAlias

import msgspec
import redis

from trainwire.schemas.keys import ahead_key
from trainwire.schemas.wire.entries import read_origin
from trainwire.workers.drain.decoding import RawEntry
from trainwire.workers.drain.stream import FIRST_PAGE, IngestStream, next_page, redis_errors
from trainwire.workers.drain.stream_repair import is_ahead
from trainwire.workers.errors import Unavailable

SourceDigest: TypeAlias = str
"""A digest of a job and a source, 16 characters; two sources with the same digest are treated as one."""
NO_SOURCE: Final[SourceDigest] = ""
"""The digest of an entry without a valid job and source."""

START: Final = "0-0"
"""An id below that of every entry; a look-ahead in a halted stream begins here."""
HEAVY_SHARE: Final = 1 / 8
"""A source is heavy if it, or its job, has a larger share than this of the entries or bytes of a batch."""
MAX_TAKEN_BYTES: Final = 1024 * 1024
MAX_TAKEN_OF_A_SOURCE: Final = 256 * 1024
MAX_READ_ENTRIES: Final = 200_000
MAX_LOOK_S: Final = 1.0
MAX_LOOK_HALTED_S: Final = 2.0
"""Time limit of a look-ahead in a halted stream, where the drain has nothing else to do."""
MAX_SKIPPED_SOURCES: Final = 10_000
"""Maximum number of sources to skip; when it is reached, the look-ahead ends."""
_PAGE_BYTES: Final = 1024 * 1024
_TTL_S: Final = 600


class State(msgspec.Struct):
    """State of a look-ahead: ids of the last entry read, and of the last skipped entry by skipped source."""

    read_through: str = msgspec.field(default=START, name="looked")
    skipped: dict[SourceDigest, str] = msgspec.field(default_factory=dict, name="sources")
    with_invalid: set[SourceDigest] = msgspec.field(default_factory=set, name="guilty")
    """Sources with invalid entries.

    They are kept when a look-ahead starts again, so that it does not decode those again.
    """
    is_partial: bool = False
    """Whether entries were skipped for another reason than invalid entries of their source, such as a limit."""
    is_done: bool = False
    """Whether the look-ahead has reached the end of the stream."""
    held: str = ""
    """The id of the last entry read, if it was stored; else empty.

    This entry is not deleted from the stream yet: the next look-ahead recognizes by it that the stream is the
    same.
    """


_JobAndSource: TypeAlias = "tuple[int, str] | None"

_decode = msgspec.json.Decoder(State).decode


def read_through(state: bytes | None) -> str:
    """Return the id up to which a stream was read ahead, from the look-ahead state that is stored in Redis."""
    return START if state is None else _decode(state).read_through


def source_of(entry: RawEntry) -> SourceDigest:
    """Return a digest of the job and source of an entry; `NO_SOURCE` if they are missing or invalid."""
    return _digest(read_origin(entry.fields))


def heavy_sources(entries: Collection[RawEntry]) -> set[SourceDigest]:
    """Return the sources that have a large share of `entries`, alone or together with other sources of their job.

    If only the job as a whole has a large share, sources with less than half of the average share are omitted.
    """
    origins = [read_origin(entry.fields) for entry in entries]
    sizes: dict[_JobAndSource, int] = defaultdict(int)
    for origin, entry in zip(origins, entries, strict=True):
        sizes[origin] += entry.held_bytes
    by_source = (Counter(origins), Counter(sizes))
    by_job: list[Counter[int | None]] = [Counter(), Counter()]
    for of_jobs, amounts in zip(by_job, by_source, strict=True):
        for origin, amount in amounts.items():
            of_jobs[origin and origin[0]] += amount
    source_counts = Counter(origin and origin[0] for origin in sizes)
    heavy = set()
    for amounts, of_jobs in zip(by_source, by_job, strict=True):
        limit = HEAVY_SHARE * amounts.total()
        for origin, amount in amounts.items():
            job = origin and origin[0]
            if amount > limit or (of_jobs[job] > limit and 2 * amount * source_counts[job] >= of_jobs[job]):
                heavy.add(_digest(origin))
    return heavy


def waited_ms(entries: Iterable[RawEntry], now_ms: int) -> int:
    """Return for how many milliseconds the oldest entry of the median source has waited at `now_ms`.

    So sources that fill the stream do not make the others send less often, whose entries are read ahead.
    """
    oldest: dict[_JobAndSource, int] = {}
    for entry in entries:
        oldest.setdefault(read_origin(entry.fields), int(entry.entry_id.partition("-")[0]))
    waits = sorted(now_ms - added_ms for added_ms in oldest.values())
    return max(0, waits[(len(waits) - 1) // 2]) if waits else 0


class LookAhead:
    """Reads ahead in one stream.

    The state is stored in Redis, because the next drain may run in another process.
    """

    def __init__(self, client: redis.Redis, stream: IngestStream) -> None:
        self._client = client
        self._stream = stream
        self._key = ahead_key(stream.key)
        self._state = State()
        self._is_unsaved = False
        self.found_invalid = False
        """Whether `skip` has recorded a further source with invalid entries since the last call of `read`."""

    def read(self, after_id: str, heavy: Collection[SourceDigest]) -> list[RawEntry]:
        """Return entries behind `after_id` of sources that are neither heavy nor skipped, oldest first.

        Ends when the entries have `MAX_TAKEN_BYTES`, or after about a second, in a halted stream two; the next
        call continues from there.

        Args:
            after_id: id of the last entry of the batch, or `START` in a halted stream. There, once the end is
                reached, sources that were skipped for another reason than invalid entries are read again from
                their first entry.
            heavy: the sources to skip; in a halted stream, those with invalid entries.
        """
        state = self._state = self._resumed(after_id)
        state.is_done, self._is_unsaved, self.found_invalid = False, True, False
        is_halted = after_id == START
        deadline = time.monotonic() + (MAX_LOOK_HALTED_S if is_halted else MAX_LOOK_S)
        taken: list[RawEntry] = []
        sizes: Counter[SourceDigest] = Counter()
        read_entries, count, largest = 0, FIRST_PAGE, 1
        while (
            not state.is_done
            and time.monotonic() < deadline
            and read_entries < MAX_READ_ENTRIES
            and len(state.skipped) < MAX_SKIPPED_SOURCES
            and sizes.total() < MAX_TAKEN_BYTES
        ):
            page = self._stream.page(f"({state.read_through}", count)
            read_entries += len(page)
            usable = _not_ahead(page)
            for entry in usable:
                source = source_of(entry)
                state.read_through = entry.entry_id
                if source == NO_SOURCE:
                    continue
                if source in heavy or sizes[source] > MAX_TAKEN_OF_A_SOURCE or self._is_known(source):
                    self._skip(source, entry.entry_id, is_invalid=is_halted and source in heavy)
                    continue
                sizes[source] += entry.held_bytes
                taken.append(entry)
                if sizes.total() >= MAX_TAKEN_BYTES:
                    break
            else:
                state.is_done = len(usable) < count
            largest = max(largest, *(entry.held_bytes for entry in page), 1)
            count = next_page(count, largest, _PAGE_BYTES)
        return taken

    def _is_known(self, source: SourceDigest) -> bool:
        """Return whether the source is skipped already, or has invalid entries."""
        return source in self._state.skipped or source in self._state.with_invalid

    def _skip(self, source: SourceDigest, entry_id: str, *, is_invalid: bool) -> None:
        self._state.is_partial |= not is_invalid and not self._is_known(source)
        self._state.skipped[source] = entry_id

    @property
    def is_at_end(self) -> bool:
        """Whether the end of the stream or the maximum number of skipped sources is reached."""
        return self._state.is_done or len(self._state.skipped) >= MAX_SKIPPED_SOURCES

    @property
    def is_partial(self) -> bool:
        """Whether entries were skipped for another reason than invalid entries of their source, such as a limit.

        A look-ahead that starts again from `START` would return them.
        """
        return self._state.is_partial

    def skip(self, entries: Iterable[RawEntry], *, are_invalid: bool) -> None:
        """Mark entries that `read` returned as skipped, together with all later entries of their sources.

        Args:
            entries: the entries that the caller does not store.
            are_invalid: True if their sources have invalid entries, False if the batch was full.
        """
        for entry in entries:
            source = source_of(entry)
            known = self._state.skipped.get(source, START)
            self._state.skipped[source] = max(known, entry.entry_id, key=_number)
            self._state.is_partial |= not are_invalid
            if are_invalid and source not in self._state.with_invalid:
                self._state.with_invalid.add(source)
                self.found_invalid = True

    def save(self, taken: Iterable[RawEntry]) -> None:
        """Delete the committed entries `taken` from the stream, and save the state in Redis.

        The last entry that was read is deleted by a later call (`State.held`). A full Redis does not save the
        state: then the same entries are read again. Does nothing if `read` was not called since the last `save`.
        """
        if not self._is_unsaved:
            return
        self._is_unsaved = False
        state = self._state
        ids = {entry.entry_id for entry in taken} | ({state.held} if state.held else set())
        state.held = state.read_through if state.read_through in ids else ""
        with redis_errors():
            if ids := ids - {state.held}:
                self._client.xdel(self._stream.key, *ids)
        with suppress(Unavailable), redis_errors():  # a full Redis: the same entries are read again
            self._client.set(self._key, msgspec.json.encode(self._state), ex=_TTL_S)

    def _resumed(self, after_id: str) -> State:
        """Return the state from Redis, without sources whose skipped entries all lie before `after_id`.

        Returns a new state if there is none, if the stream was repaired or flushed, or if a look-ahead in a halted
        stream has reached the end and has to start again.
        """
        with redis_errors():
            saved = self._client.get(self._key)
        state = _decode(saved) if isinstance(saved, bytes) else State()
        # `save` does not delete the last entry read: a lower newest id means that the stream was repaired or
        # flushed.
        if _number(state.read_through) > _number(self._stream.newest_id()):
            state = State()
        if after_id == START and state.is_partial and state.is_done:
            state = State(with_invalid=state.with_invalid)
        head = _number(after_id)
        state.skipped = {source: last for source, last in state.skipped.items() if _number(last) > head}
        if after_id != START:
            state.with_invalid.intersection_update(state.skipped)
        if _number(state.read_through) < head:
            state.read_through = after_id
        return state


def _not_ahead(page: list[RawEntry]) -> list[RawEntry]:
    """Return the entries of a page before the first id in the future.

    A stream with such an id is jammed: workers rename it and drain all of it.
    """
    is_jammed = bool(page) and is_ahead(page[-1].entry_id)
    return list(takewhile(lambda entry: not is_ahead(entry.entry_id), page)) if is_jammed else page


@lru_cache(MAX_SKIPPED_SOURCES)
def _digest(origin: _JobAndSource) -> SourceDigest:
    if origin is None:
        return NO_SOURCE
    job_id, source = origin
    return blake2b(f"{job_id} {source}".encode(), digest_size=8).hexdigest()


def _number(entry_id: str) -> tuple[int, int]:
    millis, _, number = entry_id.partition("-")
    return int(millis), int(number or 0)
