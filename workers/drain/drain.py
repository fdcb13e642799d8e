"""One Redis stream into Postgres: lease, read, store, commit; only then ack and trim."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog
from sqlalchemy import Connection, Engine

from trainwire.workers.drain import store
from trainwire.workers.drain.ahead import MAX_LOOK_HALTED_S, START, Ahead, SourceName, heavy_sources, source_of
from trainwire.workers.drain.batch import Arrival, Batch
from trainwire.workers.drain.changes import Change
from trainwire.workers.drain.decoding import RawEntry, Rejected, decode, rejected
from trainwire.workers.drain.examination import examine
from trainwire.workers.drain.stream import IngestStream
from trainwire.workers.drain.trials import MAX_CONVICTS, Caution, Trials
from trainwire.workers.drain.weights import weight_of
from trainwire.workers.errors import DrainsEnd, MostlyInvalid, Refused, Unavailable, WrongPooler
from trainwire.workers.settings import Settings

log = structlog.get_logger("trainwire.workers.drain.drain")

_TRIES = 3
"""How often a transaction that Postgres took back (deadlock, serialization) is done again at once."""
LONGEST_BATCH_S = 0.7
_SMALLEST_READ_BYTES = 64 * 1024
_MAX_CRASHES = 40
"""Of one run: more than it takes to find one entry after the other that crashes its drain."""


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
        self._most_bytes = max(1024, settings.drain_batch_bytes // 4)
        self._read_bytes = self._most_bytes
        self._trials = Trials(stream.client, stream.key)
        self._ahead = Ahead(stream.client, stream)
        self._guilty: set[SourceName] = set()
        self._last_crash: Exception | None = None

    def run(self) -> Drained:
        """Drain; raise `Unavailable` when a store is away and `MostlyInvalid` when the stream is garbage.

        A crash is tried again with ever fewer entries, until the one that causes it is found
        (`trainwire.workers.drain.trials`).
        """
        deadline = self._clock() + self._settings.drain_slice_s
        total = Drained()
        crashes = 0
        while True:
            try:
                at_end = self._transaction(total, deadline)
            except (Unavailable, MostlyInvalid):
                raise
            except Exception as exc:
                crashes += 1
                if crashes >= _MAX_CRASHES or self._clock() >= deadline:  # a time limit of the task, for one
                    raise
                if self._last_crash is None:
                    log.exception("drain.crashed", stream=self._stream.key)
                self._last_crash = exc
                continue
            # An order that was sent while we held the lease found it taken, so its entries are ours to read.
            if total.leased_elsewhere or (at_end and self._stream.finish()):
                return total
            if self._clock() >= deadline:
                total.more = True
                return total

    def _transaction(self, total: Drained, deadline: float) -> bool:
        for attempt in range(1, _TRIES + 1):
            try:
                return self._try_transaction(total)
            except Unavailable as exc:
                self._trials.pause()
                if attempt == _TRIES or isinstance(exc, WrongPooler):
                    raise
            except MostlyInvalid as exc:
                if not isinstance(exc, DrainsEnd):
                    with suppress(Unavailable):
                        while self._store_others(total) and self._clock() < deadline:
                            pass
                with suppress(Unavailable):  # a full Redis; the reason is logged all the same
                    self._stream.halt(str(exc))
                raise
            except Refused as exc:
                raise RuntimeError(f"Postgres refused our own bookkeeping of {self._stream.key}") from exc
        raise AssertionError("unreachable")

    def _try_transaction(self, total: Drained) -> bool:
        """Drain one batch; return whether it reached the end of the stream."""
        with store.postgres_errors(), self._engine.begin() as connection:
            if not store.take_lease(connection, self._stream.name):
                total.leased_elsewhere = True
                return True
            began = self._clock()
            self._stream.keep_ordered()
            caution = self._trials.begin()
            entries, at_end = self._stream.read(self._read_bytes, caution.most)
            examined, verdicts = self._examined(caution, entries)
            if len(caution.convicts) >= MAX_CONVICTS:
                self._check_convicts(caution, 0)
            arrivals = self._decode(examined, verdicts)
            if not arrivals:
                self._trials.forget()
                return True
            is_all = at_end and len(arrivals) == len(entries)
            looking_from = self._clock()
            others = [] if is_all or caution.examine else self._others(arrivals)
            looked_s = self._clock() - looking_from
            batch = Batch(connection, self._stream.kind, [*arrivals, *others])
            try:
                batch.store(self._stream.name, self._settings.drain_max_invalid_ratio)
            except MostlyInvalid:
                self._trials.forget()
                self._guilty = {source_of(letter.raw) for letter in batch.letters}
                raise
            self._check_convicts(caution, len(arrivals))
            through_id = arrivals[-1].raw.entry_id
            self._move_cursor(connection, through_id, [*arrivals, *others], batch, began)
        self._stream.settle(batch.acks(), through_id)
        self._ahead.keep(other.raw for other in others)
        self._trials.succeed(len(arrivals), found_one=bool(verdicts), is_all=is_all)
        self._count(total, batch, len(arrivals) + len(others))
        self._adapt(self._clock() - began - looked_s)
        return is_all

    def _adapt(self, seconds: float) -> None:
        """Bound the next batch by how long this one took: meanwhile all others of the stream wait."""
        most_bytes = self._settings.drain_batch_bytes
        if seconds > LONGEST_BATCH_S:
            self._most_bytes = max(most_bytes // 8, self._most_bytes // 2)
        elif seconds < LONGEST_BATCH_S / 3:
            self._most_bytes = min(most_bytes, self._most_bytes * 2)

    def _others(self, head: Sequence[Arrival]) -> list[Arrival]:
        """Return messages of other sources from behind the head of a backlog that a few sources fill."""
        raws = [arrival.raw for arrival in head]
        heavy = heavy_sources(raws)
        if not heavy:
            return []
        return self._decoded_ahead(self._ahead.look(raws[-1].entry_id, heavy))

    def _store_others(self, total: Drained) -> bool:
        """Store the valid messages of a stream whose head is garbage, of sources that have no invalid ones.

        Returns whether there may be more.
        """
        with store.postgres_errors(), self._engine.begin() as connection:
            if not store.take_lease(connection, self._stream.name):
                return False
            began = self._clock()
            others = self._decoded_ahead(self._ahead.look(START, self._guilty, MAX_LOOK_HALTED_S))
            if not others:
                self._ahead.keep(())
                return self._ahead.found_guilty or not self._ahead.is_at_end
            batch = Batch(connection, self._stream.kind, others)
            try:
                batch.store(self._stream.name, self._settings.drain_max_invalid_ratio)
            except MostlyInvalid:  # numbers that cannot be, for one: looked through again without their sources
                self._guilty |= {source_of(letter.raw) for letter in batch.letters}
                connection.rollback()
                return True
            last_id = store.last_id_of(connection, self._stream.name)
            self._move_cursor(connection, last_id, others, batch, began)
        self._stream.acknowledge(batch.acks())
        self._ahead.keep(other.raw for other in others)
        self._count(total, batch, len(others))
        return self._ahead.is_partial or not self._ahead.is_at_end

    def _decoded_ahead(self, found: Sequence[RawEntry]) -> list[Arrival]:
        """Decode up to a batch of what was found ahead; leave the rest, and sources that have invalid entries."""
        arrivals = self._decode(found, {}, adapt=False)
        guilty = {source_of(arrival.raw) for arrival in arrivals if isinstance(arrival.content, Rejected)}
        kept = [arrival for arrival in arrivals if source_of(arrival.raw) not in guilty]
        self._ahead.leave([raw for raw in found[: len(arrivals)] if source_of(raw) in guilty], is_guilty=True)
        self._ahead.leave(found[len(arrivals) :], is_guilty=False)
        return kept

    def _move_cursor(
        self, connection: Connection, last_id: str, arrivals: Sequence[Arrival], batch: Batch, began: float
    ) -> None:
        size_bytes = sum(arrival.raw.size_bytes for arrival in arrivals)
        seconds = self._clock() - began
        taken = store.Taken(len(arrivals), batch.duplicates, batch.rows_written, size_bytes, seconds)
        store.move_cursor(connection, self._stream.name, last_id, taken)

    def _count(self, total: Drained, batch: Batch, entries: int) -> None:
        """Add up what a committed transaction did, and announce it."""
        total.entries += entries
        total.stored += batch.stored
        total.duplicates += batch.duplicates
        total.dead_lettered += len(batch.letters)
        if self._on_commit is not None and batch.stored:
            self._on_commit(batch.changes())

    def _examined(
        self, caution: Caution, entries: Sequence[RawEntry]
    ) -> tuple[Sequence[RawEntry], dict[str, Rejected]]:
        """Return the entries to take, and by their ids those of them that end their drains.

        The last to be taken is the one that the examination finds: what follows was not examined.
        """
        others = [entry for entry in entries if entry.entry_id not in caution.convicts]
        if caution.is_last_straw and others:
            self._trials.convict(others.pop(0).entry_id)
        verdicts = {
            entry.entry_id: rejected(entry, "ends-drain", self._detail())
            for entry in entries
            if entry.entry_id in caution.convicts
        }
        culprit = examine(self._stream.kind, others) if caution.examine and others else None
        if culprit is None:
            return entries, verdicts
        entry = others[culprit.index]
        log.error("drain.culprit", stream=self._stream.key, entry_id=entry.entry_id, reason=culprit.reason)
        verdicts[entry.entry_id] = rejected(entry, culprit.reason, culprit.detail)
        return entries[: entries.index(entry) + 1], verdicts

    def _detail(self) -> str:
        crash = self._last_crash
        how = "was killed or timed out" if crash is None else f"failed with {type(crash).__name__}: {crash}"
        return f"each drain of this entry alone {how}"

    def _check_convicts(self, caution: Caution, arrivals: int) -> None:
        """Raise `DrainsEnd` where nothing shows that it is the fault of the entries and not ours."""
        if not caution.convicts or arrivals > len(caution.convicts):
            return
        if len(caution.convicts) >= MAX_CONVICTS:
            self._trials.forget()
        else:
            self._trials.pause()
        raise DrainsEnd(
            f"{len(caution.convicts)} entries of {self._stream.key} end their drains, the first "
            f"({caution.convicts[0]}): {self._detail()}. Nothing was taken from the stream: they become dead "
            "letters once another entry can be stored"
        ) from self._last_crash

    def _decode(
        self, entries: Sequence[RawEntry], verdicts: Mapping[str, Rejected], *, adapt: bool = True
    ) -> list[Arrival]:
        """Decode up to the batch's bytes of memory; what is beyond is read again next time."""
        arrivals: list[Arrival] = []
        room = self._most_bytes
        for entry in entries:
            if room <= 0:
                if not adapt:
                    return arrivals
                self._read_bytes = max(sum(arrival.raw.held_bytes for arrival in arrivals), _SMALLEST_READ_BYTES)
                return arrivals
            if known := verdicts.get(entry.entry_id):
                arrivals.append(Arrival(entry, known))
                continue
            content, plain_bytes = decode(self._stream.kind, entry)
            arrivals.append(Arrival(entry, content))
            room -= weight_of(content, plain_bytes)
        if adapt:
            self._read_bytes = min(self._read_bytes * 2, self._most_bytes)
        return arrivals
