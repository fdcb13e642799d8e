"""Reads ahead of a backlog that a few sources fill, so that the messages of others need not wait for its end.

The entries behind the head of a stream are looked through in order, each once. The entries of a source (a job and
the name of one of its senders) are taken, all that are there, or from one of them on they are left, until the head
of the stream has passed the last that was left: so the messages of a source never change their order.

A trainer can send entries in the name of another's job, but does not know the names of its sources: so no decision
goes by the job alone. Entries without a valid job and source stay in the stream and affect no source.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import suppress
from hashlib import blake2b
from typing import Final, TypeAlias

import msgspec
import redis

from trainwire.schemas.keys import ahead_key
from trainwire.schemas.wire import read_origin
from trainwire.workers.drain.decoding import RawEntry
from trainwire.workers.drain.repairs import is_ahead
from trainwire.workers.drain.stream import FIRST_PAGE, IngestStream, next_page, redis_errors
from trainwire.workers.errors import Unavailable

SourceName: TypeAlias = str
"""A digest of an entry's job and source, of 16 characters; two sources of one digest are left together."""
NO_SOURCE: Final[SourceName] = ""
"""Of an entry without a valid job and source."""

START: Final = "0-0"
"""Before the first entry: the look through a halted stream begins here."""
HEAVY_SHARE: Final = 1 / 8
"""A source or job that has more of a batch, in entries or bytes, makes the others wait."""
MAX_TAKEN_BYTES: Final = 1024 * 1024
MAX_TAKEN_OF_A_SOURCE: Final = 256 * 1024
MAX_SEEN: Final = 200_000
MAX_LOOK_S: Final = 1.0
MAX_LOOK_HALTED_S: Final = 2.0
"""Where nothing else is done in between."""
MAX_LEFT: Final = 10_000
"""Sources; where so many fill the backlog nobody goes before another."""
_PAGE_BYTES: Final = 1024 * 1024
_TTL_S: Final = 600


class State(msgspec.Struct):
    """Up to which id the stream was looked through, and the last id that was left of each source."""

    looked: str = START
    sources: dict[SourceName, str] = {}
    guilty: set[SourceName] = set()
    """Those of them that have invalid entries: a look that begins anew does not decode theirs again."""
    is_partial: bool = False
    """Entries were left for their number or size alone."""
    is_done: bool = False
    """The look has reached the end of the stream."""
    held: str = ""
    """The entry that was looked at last, where it was taken: it stays, and shows that the stream is the same."""


_Origin: TypeAlias = "tuple[int, str] | None"

_decode = msgspec.json.Decoder(State).decode


def looked_through(state: bytes | None) -> str:
    """Return the id up to which a look ahead has come, by its state as Redis holds it."""
    return START if state is None else _decode(state).looked


def source_of(entry: RawEntry) -> SourceName:
    """Return the name by which entries of one source are known here; `NO_SOURCE` where there is no valid one."""
    return _name(read_origin(entry.fields))


def heavy_sources(entries: Collection[RawEntry]) -> set[SourceName]:
    """Return the sources that have a large share of these entries, alone or with others of their job.

    Of a job with a large share those are left out that have less than half of what its sources have on average.
    """
    by_source: list[Counter[_Origin]] = [Counter(), Counter()]
    by_job: list[Counter[int | None]] = [Counter(), Counter()]
    for entry in entries:
        origin = read_origin(entry.fields)
        for number, amount in enumerate((1, entry.held_bytes)):
            by_source[number][origin] += amount
            by_job[number][origin and origin[0]] += amount
    members = Counter(origin and origin[0] for origin in by_source[0])
    heavy = set()
    for amounts, of_jobs in zip(by_source, by_job, strict=True):
        most = HEAVY_SHARE * amounts.total()
        for origin, amount in amounts.items():
            job = origin and origin[0]
            if amount > most or (of_jobs[job] > most and 2 * amount * members[job] >= of_jobs[job]):
                heavy.add(_name(origin))
    return heavy


class Ahead:
    """The look ahead in one stream; what it knows is kept in Redis, for the next drain may be another process."""

    def __init__(self, client: redis.Redis, stream: IngestStream) -> None:
        self._client = client
        self._stream = stream
        self._key = ahead_key(stream.key)
        self._state = State()
        self._has_looked = False
        self.found_guilty = False
        """Whether the last look found a source with invalid entries that was not known before."""

    def look(self, through_id: str, heavy: Collection[SourceName], most_s: float = MAX_LOOK_S) -> list[RawEntry]:
        """Return entries behind `through_id` of sources that are neither heavy nor left, oldest first.

        The look ends after `most_s` seconds. From `START` on the heavy sources are those that have invalid
        entries: sources that were left for another reason are taken from their first entry on, once the look has
        reached the end of the stream.
        """
        state = self._state = self._resumed(through_id)
        is_halted = through_id == START
        self.found_guilty = False
        taken: list[RawEntry] = []
        sizes: Counter[SourceName] = Counter()
        looked, count, largest = 0, FIRST_PAGE, 1
        state.is_done, self._has_looked = False, True
        began = time.monotonic()
        while (
            time.monotonic() - began < most_s
            and looked < MAX_SEEN
            and len(state.sources) < MAX_LEFT
            and sizes.total() < MAX_TAKEN_BYTES
        ):
            page = self._stream.page(f"({state.looked}", count)
            looked += len(page)
            for entry in page:
                if is_ahead(entry.entry_id):  # a jam: workers rename the stream and drain all of it
                    state.is_done = True
                    break
                source = source_of(entry)
                state.looked = entry.entry_id
                if source == NO_SOURCE:
                    continue
                is_known = source in state.sources or source in state.guilty
                if is_known or source in heavy or sizes[source] > MAX_TAKEN_OF_A_SOURCE:
                    state.is_partial |= not is_known and not (is_halted and source in heavy)
                    state.sources[source] = entry.entry_id
                    continue
                sizes[source] += entry.held_bytes
                taken.append(entry)
                if sizes.total() >= MAX_TAKEN_BYTES:
                    break
            else:
                state.is_done = len(page) < count
            if state.is_done:
                break
            largest = max(largest, *(entry.held_bytes for entry in page))
            count = next_page(count, largest, _PAGE_BYTES)
        return taken

    @property
    def is_at_end(self) -> bool:
        """Whether the look has come to the end of the stream, or to its limit of sources that are left."""
        return self._state.is_done or len(self._state.sources) >= MAX_LEFT

    @property
    def is_partial(self) -> bool:
        """Whether entries were left that another look from `START` would take."""
        return self._state.is_partial

    def leave(self, entries: Iterable[RawEntry], *, is_guilty: bool) -> None:
        """Note that these entries were not taken after all: what follows of their sources is left too.

        They are guilty where their sources have invalid ones; otherwise there was no room for them.
        """
        for entry in entries:
            source = source_of(entry)
            known = self._state.sources.get(source, START)
            self._state.sources[source] = max(known, entry.entry_id, key=_number)
            self._state.is_partial |= not is_guilty
            if is_guilty and source not in self._state.guilty:
                self._state.guilty.add(source)
                self.found_guilty = True

    def keep(self, taken: Iterable[RawEntry]) -> None:
        """After the commit: delete what was taken, and remember how far the look went, if there was one."""
        if not self._has_looked:
            return
        self._has_looked = False
        state = self._state
        ids = {entry.entry_id for entry in taken} | ({state.held} if state.held else set())
        state.held = state.looked if state.looked in ids else ""
        with redis_errors():
            if ids := ids - {state.held}:
                self._client.xdel(self._stream.key, *ids)
        with suppress(Unavailable), redis_errors():  # a full Redis: it is looked through again
            self._client.set(self._key, msgspec.json.encode(self._state), ex=_TTL_S)

    def _resumed(self, through_id: str) -> State:
        """Return the state from which the next look goes on, without what the head of the stream has passed."""
        state = self._loaded()
        # The entry that was looked at last stays (`keep`), unless the stream was repaired or flushed.
        if _number(state.looked) > _number(self._stream.newest_id()):
            state = State()
        if through_id == START and state.is_partial and state.is_done:
            state = State(guilty=state.guilty)
        head = _number(through_id)
        state.sources = {source: last for source, last in state.sources.items() if _number(last) > head}
        if through_id != START:
            state.guilty.intersection_update(state.sources)
        if _number(state.looked) < head:
            state.looked = through_id
        return state

    def _loaded(self) -> State:
        with redis_errors():
            known = self._client.get(self._key)
        return _decode(known) if isinstance(known, bytes) else State()


def _name(origin: _Origin) -> SourceName:
    if origin is None:
        return NO_SOURCE
    job_id, source = origin
    return blake2b(f"{job_id} {source}".encode(), digest_size=8).hexdigest()


def _number(entry_id: str) -> tuple[int, int]:
    millis, _, number = entry_id.partition("-")
    return int(millis), int(number or 0)
