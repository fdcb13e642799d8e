"""One Redis stream into Postgres: lease, read, store, commit; only then ack and trim."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import Engine

from schemas.messages import Logs, Message, Metrics
from workers import store
from workers.batch import Arrival, Batch
from workers.changes import Change
from workers.decoding import RawEntry, decode
from workers.errors import MostlyInvalid, Refused, Unavailable, WrongPooler
from workers.settings import Settings
from workers.streams import IngestStream

_TRIES = 3
"""How often a transaction that Postgres took back (deadlock, serialization) is done again at once."""
_ROW_OVERHEAD_BYTES = 100
_SMALLEST_READ_BYTES = 64 * 1024


@dataclass(slots=True)
class Drained:
    """What one drain did, in entries; `more` when its time was over before the stream was empty."""

    entries: int = 0
    stored: int = 0
    duplicates: int = 0
    dead_lettered: int = 0
    leased_elsewhere: bool = False
    more: bool = False


class Drain:
    """Drains one stream until it is empty or the time slice ends.

    `on_commit` is told what each transaction that stored something changed, after its commit and its acks.
    """

    def __init__(
        self,
        engine: Engine,
        stream: IngestStream,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
        on_commit: Callable[[list[Change]], None] | None = None,
    ) -> None:
        self._engine = engine
        self._stream = stream
        self._settings = settings
        self._clock = clock
        self._on_commit = on_commit
        self._read_bytes = settings.drain_batch_bytes

    def run(self) -> Drained:
        """Drain; raise `Unavailable` when a store is away and `MostlyInvalid` when the stream is garbage."""
        deadline = self._clock() + self._settings.drain_slice_s
        total = Drained()
        while True:
            at_end = self._transaction(total)
            # An order that was sent while we held the lease found it taken, so its entries are ours to read.
            if total.leased_elsewhere or (at_end and self._stream.finish()):
                return total
            if self._clock() >= deadline:
                total.more = True
                return total

    def _transaction(self, total: Drained) -> bool:
        for attempt in range(1, _TRIES + 1):
            try:
                return self._try_transaction(total)
            except WrongPooler:
                raise
            except Unavailable:
                if attempt == _TRIES:
                    raise
            except MostlyInvalid as exc:
                with suppress(Unavailable):  # a full Redis; the reason is logged all the same
                    self._stream.halt(str(exc))
                raise
            except Refused as exc:
                raise RuntimeError(f"Postgres refused our own bookkeeping of {self._stream.key}") from exc
        raise AssertionError("unreachable")

    def _try_transaction(self, total: Drained) -> bool:
        """Drain one batch; return whether it reached the end of the stream."""
        with store.postgres_errors(), self._engine.begin() as connection:
            if not store.take_lease(connection, self._stream.key):
                total.leased_elsewhere = True
                return True
            began = self._clock()
            self._stream.keep_ordered()
            entries, at_end = self._stream.read(self._read_bytes)
            arrivals = self._decode(entries)
            if not arrivals:
                return True
            batch = Batch(connection, self._stream.kind, arrivals)
            batch.store(self._stream.key, self._settings.drain_max_invalid_ratio)
            through_id = arrivals[-1].raw.entry_id
            size_bytes = sum(arrival.raw.size_bytes for arrival in arrivals)
            seconds = self._clock() - began
            taken = store.Taken(len(arrivals), batch.duplicates, batch.rows_written, size_bytes, seconds)
            store.move_cursor(connection, self._stream.key, through_id, taken)
        self._stream.settle(batch.acks(), through_id)
        total.entries += len(arrivals)
        total.stored += batch.stored
        total.duplicates += batch.duplicates
        total.dead_lettered += len(batch.letters)
        if self._on_commit is not None and batch.stored:
            self._on_commit(batch.changes())
        return at_end and len(arrivals) == len(entries)

    def _decode(self, entries: Sequence[RawEntry]) -> list[Arrival]:
        """Decode up to the batch's bytes, now uncompressed; what is beyond is read again next time."""
        arrivals: list[Arrival] = []
        room = self._settings.drain_batch_bytes
        for entry in entries:
            if room <= 0:
                self._read_bytes = max(sum(arrival.raw.size_bytes for arrival in arrivals), _SMALLEST_READ_BYTES)
                return arrivals
            content = decode(self._stream.kind, entry)
            arrivals.append(Arrival(entry, content))
            room -= _weight(content) if isinstance(content, Message) else entry.size_bytes
        self._read_bytes = min(self._read_bytes * 2, self._settings.drain_batch_bytes)
        return arrivals


def _weight(message: Message) -> int:
    """About how many bytes the rows of a message take."""
    match message.body:
        case Logs(lines=lines):
            return sum(map(len, lines)) + _ROW_OVERHEAD_BYTES * len(lines)
        case Metrics(points=points):
            return sum(_ROW_OVERHEAD_BYTES + 30 * len(point.values) for point in points)
        case _:
            return _ROW_OVERHEAD_BYTES
