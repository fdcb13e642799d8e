"""Drains one Redis stream into Postgres: takes the lease, reads, stores, commits, then acknowledges and trims."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import structlog
from sqlalchemy import Connection, Engine

from trainwire.schemas.wire.entries import read_origin
from trainwire.stores.tracing import span
from trainwire.workers.drain import store
from trainwire.workers.drain.batch import Arrival, Batch
from trainwire.workers.drain.changes import Change
from trainwire.workers.drain.decoding import RawEntry, Rejected, decode, memory_bytes, rejected
from trainwire.workers.drain.lookahead import START, LookAhead, SourceDigest, heavy_sources, source_of, waited_ms
from trainwire.workers.drain.poison_entries import (
    MAX_POISON_ENTRIES,
    PoisonSearch,
    TransactionLimits,
    find_poison_entry,
)
from trainwire.workers.drain.stream import IngestStream
from trainwire.workers.errors import DrainsEnd, MostlyInvalid, Refused, Unavailable, WrongPooler
from trainwire.workers.job_traces import traces_of
from trainwire.workers.settings import Settings

log = structlog.get_logger("trainwire.workers.drain.drain")

_TRIES = 3
"""Maximum number of tries of a transaction after `Unavailable`, for example if Postgres aborts it (deadlock)."""
LONGEST_BATCH_S = 0.7
"""If a transaction takes more seconds, the next batch is smaller: messages behind a long transaction wait."""
_SMALLEST_READ_BYTES = 64 * 1024
_SHARE_S = 0.1
"""Seconds of a drain after which it yields to other waiting orders.

Entries of 10,000 jobs arrive in all streams all the time, so that no stream is ever empty.
"""
_MAX_CRASHES = 40
"""Maximum number of unexpected exceptions in one `Drain.run`.

The search for several poison entries causes fewer.
"""


@dataclass(slots=True)
class Drained:
    """The numbers of entries that one drain took, stored, recognized as duplicates, and dead-lettered.

    `leased_elsewhere` is True if another worker had the lease; `more` if the drain ended before the stream was
    empty.
    """

    entries: int = 0
    stored: int = 0
    duplicates: int = 0
    dead_lettered: int = 0
    leased_elsewhere: bool = False
    more: bool = False


class Drain:
    """Drains one stream until it is empty, other orders wait, or `drain_slice_s` has passed.

    After each commit that stored messages, and after their acknowledgement, `on_commit` is called with the changes
    of the jobs. `linger_s` (entries of the last transaction) returns for how many seconds the empty stream may
    collect messages before the next drain is ordered.
    """

    def __init__(
        self,
        engine: Engine,
        stream: IngestStream,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
        on_commit: Callable[[list[Change]], None] | None = None,
        *,
        has_waiting_orders: Callable[[], bool] = lambda: False,
        linger_s: Callable[[int], float] = lambda _entries: 0.0,
    ) -> None:
        self._engine = engine
        self._stream = stream
        self._settings = settings
        self._clock = clock
        self._on_commit = on_commit
        self._has_waiting_orders = has_waiting_orders
        self._linger_s = linger_s
        self._batch_bytes = max(1024, settings.drain_batch_bytes // 4)
        self._read_bytes = self._batch_bytes
        self._poison = PoisonSearch(stream.client, stream.key)
        self._lookahead = LookAhead(stream.client, stream)
        self._with_invalid: set[SourceDigest] = set()
        """Sources that have invalid entries at the head of the stream."""
        self._last_crash: Exception | None = None

    def run(self) -> Drained:
        """Drain the stream, and return the counts.

        Raises `Unavailable` if Postgres or Redis does not answer, and `MostlyInvalid` if nearly all entries are
        invalid, or if all entries of a transaction end it (`DrainsEnd`). After any other exception the drain
        continues with smaller transactions until it has found the entry that causes it
        (`trainwire.workers.drain.poison_entries`); after `_MAX_CRASHES` exceptions, or once its time has passed,
        it raises the exception.
        """
        share_end = self._clock() + _SHARE_S
        deadline = self._clock() + self._settings.drain_slice_s
        total = Drained()
        crashes = 0
        while True:
            before = total.entries
            try:
                at_end = self._transaction(total, deadline)
            except (Unavailable, MostlyInvalid):
                raise
            except Exception as exc:
                crashes += 1
                if crashes >= _MAX_CRASHES or self._clock() >= deadline:  # for example at the task's time limit
                    raise
                if self._last_crash is None:
                    log.exception("drain.crashed", stream=self._stream.key)
                self._last_crash = exc
                continue
            # Orders that were sent while this drain held the lease had no effect: it reads their entries too.
            if total.leased_elsewhere or (at_end and self._is_finished(total.entries - before)):
                return total
            now = self._clock()
            if now >= deadline or (now >= share_end and self._has_waiting_orders()):
                total.more = True
                return total

    def _is_finished(self, entries: int) -> bool:
        """Return whether to end this drain, which has read all of the stream in a transaction of `entries`.

        A stream that may collect messages is marked as ordered meanwhile, and ordered again by the stream watch.
        """
        linger_s = self._linger_s(entries) if entries else 0.0
        if linger_s > 0:
            self._stream.rest(linger_s)
            return True
        return self._stream.finish()

    def _transaction(self, total: Drained, deadline: float) -> bool:
        """Drain one batch, with retries; return whether the end of the stream is reached.

        If nearly all entries are invalid, store valid messages from behind them until `deadline`, mark the stream
        as halted, and raise `MostlyInvalid`. After `DrainsEnd`, only mark it and raise.
        """
        for attempt in range(1, _TRIES + 1):
            try:
                return self._try_transaction(total)
            except Unavailable as exc:
                self._poison.record_rollback()
                if attempt == _TRIES or isinstance(exc, WrongPooler):
                    raise
            except MostlyInvalid as exc:
                if not isinstance(exc, DrainsEnd):
                    with suppress(Unavailable):
                        while self._store_valid(total) and self._clock() < deadline:
                            pass
                with suppress(Unavailable):  # a full Redis: the reason is also logged
                    self._stream.halt(str(exc))
                raise
            except Refused as exc:
                raise RuntimeError(f"Postgres refused our own bookkeeping of {self._stream.key}") from exc
        raise AssertionError("unreachable")

    def _try_transaction(self, total: Drained) -> bool:
        """Drain one batch in one transaction; return whether it contained all entries of the stream.

        Returns True as well if another worker has the lease (`total.leased_elsewhere`).
        """
        with (
            ExitStack() as spans,
            store.postgres_errors(),
            self._engine.begin() as connection,
            store.commit_at_end(connection),
        ):
            if not store.take_lease(connection, self._stream.name):
                total.leased_elsewhere = True
                return True
            began, began_ns = self._clock(), time.time_ns()
            now_ms = self._stream.keep_ordered()
            limits = self._poison.begin()
            entries, at_end = self._stream.read(self._read_bytes, limits.max_entries)
            to_decode, poison = self._examined(limits, entries)
            if len(limits.poison_ids) >= MAX_POISON_ENTRIES:
                self._check_poison(limits, 0)
            arrivals = self._decode(to_decode, poison)
            if not arrivals:
                self._poison.reset()
                return True
            is_all = at_end and len(arrivals) == len(entries)
            lookahead_from = self._clock()
            others = [] if is_all or limits.decode_in_child else self._read_ahead(arrivals)
            lookahead_s = self._clock() - lookahead_from
            traces = self._traced(spans, [*arrivals, *others], began_ns)
            batch = Batch(connection, self._stream.kind, [*arrivals, *others])
            try:
                batch.store(self._stream.name, self._settings.drain_max_invalid_ratio)
            except MostlyInvalid:
                self._poison.reset()
                self._with_invalid = {source_of(letter.raw) for letter in batch.letters}
                raise
            self._check_poison(limits, len(arrivals))
            through_id = arrivals[-1].raw.entry_id
            self._move_cursor(connection, through_id, [*arrivals, *others], batch, began)
        waited = waited_ms((arrival.raw for arrival in [*arrivals, *others]), now_ms)
        self._stream.settle(batch.acks(), through_id, waited, traces)
        self._lookahead.save(other.raw for other in others)
        self._poison.record_commit(len(arrivals), found_poison=bool(poison), is_all=is_all)
        self._count(total, batch, len(arrivals) + len(others), traces)
        self._adapt(self._clock() - began - lookahead_s)
        return is_all

    def _adapt(self, seconds: float) -> None:
        """Set the size in bytes of the next batch, by how many `seconds` the last batch took."""
        max_bytes = self._settings.drain_batch_bytes
        if seconds > LONGEST_BATCH_S:
            self._batch_bytes = max(max_bytes // 8, self._batch_bytes // 2)
        elif seconds < LONGEST_BATCH_S / 3:
            self._batch_bytes = min(max_bytes, self._batch_bytes * 2)

    def _read_ahead(self, head: Sequence[Arrival]) -> list[Arrival]:
        """Return decoded entries from behind the batch `head`, if a few sources fill most of `head`.

        Entries of these few sources are not returned.
        """
        raws = [arrival.raw for arrival in head]
        heavy = heavy_sources(raws)
        return self._decode_valid(self._lookahead.read(raws[-1].entry_id, heavy)) if heavy else []

    def _store_valid(self, total: Drained) -> bool:
        """Store valid messages from behind the invalid entries at the beginning of the stream.

        Returns whether the stream may have further ones. Messages of sources that have invalid entries are not
        stored, because that would change their order.
        """
        with (
            ExitStack() as spans,
            store.postgres_errors(),
            self._engine.begin() as connection,
            store.commit_at_end(connection),
        ):
            if not store.take_lease(connection, self._stream.name):
                return False
            began_ns = time.time_ns()
            began = self._clock()
            arrivals = self._decode_valid(self._lookahead.read(START, self._with_invalid))
            if not arrivals:
                self._lookahead.save(())
                return self._lookahead.found_invalid or not self._lookahead.is_at_end
            traces = self._traced(spans, arrivals, began_ns)
            batch = Batch(connection, self._stream.kind, arrivals)
            try:
                batch.store(self._stream.name, self._settings.drain_max_invalid_ratio)
            except MostlyInvalid:  # decoded, but with impossible numbers: the next look-ahead skips their sources
                self._with_invalid |= {source_of(letter.raw) for letter in batch.letters}
                connection.rollback()
                return True
            last_id = store.last_id_of(connection, self._stream.name)
            self._move_cursor(connection, last_id, arrivals, batch, began)
        self._stream.acknowledge(batch.acks())
        self._lookahead.save(arrival.raw for arrival in arrivals)
        self._count(total, batch, len(arrivals), traces)
        return self._lookahead.is_partial or not self._lookahead.is_at_end

    def _decode_valid(self, entries: Sequence[RawEntry]) -> list[Arrival]:
        """Decode up to one batch of entries that were read ahead; return those of sources without invalid entries.

        All others are marked as skipped in the look-ahead.
        """
        arrivals, _ = self._decode_batch(entries, {})
        with_invalid = {source_of(arrival.raw) for arrival in arrivals if isinstance(arrival.content, Rejected)}
        invalid = [arrival.raw for arrival in arrivals if source_of(arrival.raw) in with_invalid]
        self._lookahead.skip(invalid, are_invalid=True)
        self._lookahead.skip(entries[len(arrivals) :], are_invalid=False)
        return [arrival for arrival in arrivals if source_of(arrival.raw) not in with_invalid]

    def _move_cursor(
        self, connection: Connection, last_id: str, arrivals: Sequence[Arrival], batch: Batch, began: float
    ) -> None:
        size_bytes = sum(arrival.raw.size_bytes for arrival in arrivals)
        seconds = self._clock() - began
        counts = store.TransactionCounts(len(arrivals), batch.duplicates, batch.rows_written, size_bytes, seconds)
        store.move_cursor(connection, self._stream.name, last_id, counts)

    def _traced(self, spans: ExitStack, arrivals: Sequence[Arrival], began_ns: int) -> Mapping[int, str]:
        """Begin the span of this transaction, which ends with `spans`; return the `traceparent` of each job."""
        traces = traces_of((arrival.content.job_id, arrival.raw.fields) for arrival in arrivals)
        job_id = next(iter(traces)) if len(traces) == 1 else None
        spans.enter_context(
            span(
                "drain",
                traces.values(),
                began_ns=began_ns,
                kind="consumer",
                stream=self._stream.name,
                entries=len(arrivals),
                job_id=job_id,
            )
        )
        return traces

    def _count(self, total: Drained, batch: Batch, entries: int, traces: Mapping[int, str]) -> None:
        """Add the counts of a committed batch to `total`; call `on_commit` if the batch stored messages."""
        total.entries += entries
        total.stored += batch.stored
        total.duplicates += batch.duplicates
        total.dead_lettered += len(batch.letters)
        if self._on_commit is not None and batch.stored:
            self._on_commit(batch.changes(traces))

    def _examined(
        self, limits: TransactionLimits, entries: Sequence[RawEntry]
    ) -> tuple[Sequence[RawEntry], dict[str, Rejected]]:
        """Return the entries to decode, and rejections of the poison entries among them by entry id.

        Entries behind a poison entry that the child process has just found are left for the next transaction,
        because the child has not tested them.
        """
        others = [entry for entry in entries if entry.entry_id not in limits.poison_ids]
        if limits.first_is_poison and others:
            self._poison.add_poison(others.pop(0).entry_id)
        rejections = {
            entry.entry_id: rejected(entry, "ends-drain", self._crash_detail())
            for entry in entries
            if entry.entry_id in limits.poison_ids
        }
        found = find_poison_entry(self._stream.kind, others) if limits.decode_in_child and others else None
        if found is None:
            return entries, rejections
        entry = others[found.index]
        job_id, _ = read_origin(entry.fields) or (None, None)
        log.error(
            "drain.poison_entry",
            stream=self._stream.key,
            entry_id=entry.entry_id,
            job_id=job_id,
            reason=found.reason,
        )
        rejections[entry.entry_id] = rejected(entry, found.reason, found.detail)
        return entries[: entries.index(entry) + 1], rejections

    def _crash_detail(self) -> str:
        crash = self._last_crash
        failure = "was killed or timed out" if crash is None else f"failed with {type(crash).__name__}: {crash}"
        return f"each drain of this entry alone {failure}"

    def _check_poison(self, limits: TransactionLimits, arrivals: int) -> None:
        """Raise `DrainsEnd` if the transaction contains nothing but entries that crash or kill their drain.

        `arrivals` is the number of its entries; with 0, `DrainsEnd` is raised if any such entry is known. As long
        as no other entry can be stored, the cause may lie in our code or servers instead of the entries.
        """
        poison_ids = limits.poison_ids
        if not poison_ids or arrivals > len(poison_ids):
            return
        if len(poison_ids) >= MAX_POISON_ENTRIES:
            self._poison.reset()
        else:
            self._poison.record_rollback()
        raise DrainsEnd(
            f"{len(poison_ids)} entries of {self._stream.key} end their drains, the first "
            f"({poison_ids[0]}): {self._crash_detail()}. Nothing was taken from the stream: they become dead "
            "letters once another entry can be stored"
        ) from self._last_crash

    def _decode(self, entries: Sequence[RawEntry], rejections: Mapping[str, Rejected]) -> list[Arrival]:
        """Decode one batch, and set the number of bytes for the next read from its size."""
        arrivals, is_full = self._decode_batch(entries, rejections)
        if is_full:
            self._read_bytes = max(sum(arrival.raw.held_bytes for arrival in arrivals), _SMALLEST_READ_BYTES)
        else:
            self._read_bytes = min(self._read_bytes * 2, self._batch_bytes)
        return arrivals

    def _decode_batch(
        self, entries: Sequence[RawEntry], rejections: Mapping[str, Rejected]
    ) -> tuple[list[Arrival], bool]:
        """Decode entries until their messages fill the memory of a batch.

        Return them, and whether entries are left over.
        """
        arrivals: list[Arrival] = []
        room = self._batch_bytes
        for entry in entries:
            if room <= 0:
                return arrivals, True
            if known := rejections.get(entry.entry_id):
                arrivals.append(Arrival(entry, known))
                continue
            content, plain_bytes = decode(self._stream.kind, entry)
            arrivals.append(Arrival(entry, content))
            room -= memory_bytes(content, plain_bytes)
        return arrivals, False
