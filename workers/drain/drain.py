"""Drains one Redis stream into Postgres: takes the lease, reads, stores, commits, then acknowledges and trims."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from sqlalchemy import Connection, Engine

from trainwire.stores.tracing import span
from trainwire.workers.drain import store
from trainwire.workers.drain.arrivals import Arrival, decode_batch
from trainwire.workers.drain.batch import Batch
from trainwire.workers.drain.changes import Change
from trainwire.workers.drain.decoding import RawEntry, Rejected
from trainwire.workers.drain.lookahead import START, LookAhead, SourceDigest, heavy_sources, source_of, waited_ms
from trainwire.workers.drain.poison_entries import PoisonSearch
from trainwire.workers.drain.stream import IngestStream
from trainwire.workers.errors import DrainsEnd, MostlyInvalid, Refused, RowsLocked, Unavailable, WrongPooler
from trainwire.workers.job_traces import traces_of
from trainwire.workers.settings import Settings

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
        self._poison = PoisonSearch(stream.client, stream.kind, stream.key)
        self._lookahead = LookAhead(stream.client, stream)
        self._with_invalid: set[SourceDigest] = set()
        """Sources that have invalid entries at the head of the stream."""
        self._locked_jobs: set[int] = set()
        """Jobs whose rows another session of Postgres had locked when the stream was read ahead last."""
        self._is_resting = False
        """Whether the stream, which is empty, may collect messages before the next drain."""

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
            try:
                at_end = self._transaction(total, deadline)
            except (Unavailable, MostlyInvalid):
                raise
            except Exception as exc:
                crashes += 1
                if crashes >= _MAX_CRASHES or self._clock() >= deadline:  # for example at the task's time limit
                    raise
                self._poison.record_crash(exc)
                continue
            # Orders that were sent while this drain held the lease had no effect: it reads their entries too.
            if total.leased_elsewhere or (at_end and (self._is_resting or self._stream.finish())):
                return total
            now = self._clock()
            if now >= deadline or (now >= share_end and self._has_waiting_orders()):
                total.more = True
                return total

    def _transaction(self, total: Drained, deadline: float) -> bool:
        """Drain one batch, with retries; return whether the end of the stream is reached.

        If nearly all entries are invalid, store valid messages from behind them until `deadline`, mark the stream
        as halted, and raise `MostlyInvalid`. After `DrainsEnd`, only mark it and raise. If another session has
        locked the row of a job, store the messages of other jobs until `deadline`, and raise `RowsLocked`.
        """
        for attempt in range(1, _TRIES + 1):
            try:
                return self._try_transaction(total)
            except RowsLocked as exc:
                self._poison.record_rollback()
                self._locked_jobs.clear()
                self._store_all_valid(total, deadline)
                jobs = ", ".join(map(str, sorted(self._locked_jobs)))
                raise RowsLocked(f"{exc}; messages of these jobs wait for another session: {jobs}") from exc
            except Unavailable as exc:
                self._poison.record_rollback()
                if attempt == _TRIES or isinstance(exc, WrongPooler):
                    raise
            except MostlyInvalid as exc:
                if not isinstance(exc, DrainsEnd):
                    self._poison.reset()
                    self._store_all_valid(total, deadline)
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
        with self._leased() as connection:
            if connection is None:
                total.leased_elsewhere = True
                return True
            began, began_ns = self._clock(), time.time_ns()
            beginning = self._stream.begin(self._poison.begin_commands())
            limits = self._poison.begin(beginning.replies)
            entries, at_end = self._stream.read(beginning.first_page, self._read_bytes, limits.max_entries)
            to_decode, poison = self._poison.examined(entries)
            head = self._decode(to_decode, poison)
            if not head:
                self._poison.reset()
                return True
            is_all = at_end and len(head) == len(entries)
            lookahead_from = self._clock()
            others = [] if is_all or limits.decode_in_child else self._read_ahead(head)
            lookahead_s = self._clock() - lookahead_from
            arrivals = [*head, *others]
            self._with_invalid = set()
            with self._traced(arrivals, began_ns) as traces:
                batch = self._store(connection, arrivals)
                self._poison.check(len(head))
                through_id = head[-1].raw.entry_id
                self._commit(connection, through_id, arrivals, batch, began)
        commands = self._poison.commit_commands(len(head), found_poison=bool(poison), is_all=is_all)
        linger_s = self._linger_s(len(arrivals)) if is_all else 0.0
        self._is_resting = linger_s > 0
        if self._is_resting:
            commands.append(self._stream.rest_command(linger_s))
        waited = waited_ms((arrival.raw for arrival in arrivals), beginning.now_ms)
        self._stream.settle(batch.acks(), through_id, waited, traces, commands)
        self._poison.record_end()
        self._lookahead.save(other.raw for other in others)
        self._count(total, batch, len(arrivals), traces)
        self._adapt(self._clock() - began - lookahead_s)
        return is_all

    @contextmanager
    def _leased(self) -> Iterator[Connection | None]:
        """Begin a transaction that holds the lease of the stream; yield None if another worker has it.

        The transaction is rolled back at the end unless it was committed.
        """
        with store.postgres_errors(), self._engine.connect() as connection:
            yield connection if store.take_lease(connection, self._stream.name) else None

    @contextmanager
    def _traced(self, arrivals: Sequence[Arrival], began_ns: int) -> Iterator[Mapping[int, str]]:
        """Record the block as the span of this transaction; yield the `traceparent` of each job."""
        traces = traces_of((arrival.content.job_id, arrival.raw.fields) for arrival in arrivals)
        job_id = next(iter(traces)) if len(traces) == 1 else None
        with span(
            "drain",
            traces.values(),
            began_ns=began_ns,
            kind="consumer",
            stream=self._stream.name,
            entries=len(arrivals),
            job_id=job_id,
        ):
            yield traces

    def _store(self, connection: Connection, arrivals: Sequence[Arrival]) -> Batch:
        """Store decoded entries. On `MostlyInvalid`, the sources of the invalid ones are recorded before."""
        batch = Batch(connection, self._stream.kind, arrivals)
        try:
            batch.store(self._stream.name, self._settings.drain_max_invalid_ratio)
        except MostlyInvalid:
            self._with_invalid |= {source_of(letter.raw) for letter in batch.letters}
            raise
        return batch

    def _commit(
        self, connection: Connection, last_id: str, arrivals: Sequence[Arrival], batch: Batch, began: float
    ) -> None:
        """Move the cursor of the stream to `last_id`, and commit."""
        size_bytes = sum(arrival.raw.size_bytes for arrival in arrivals)
        seconds = self._clock() - began
        counts = store.TransactionCounts(len(arrivals), batch.duplicates, batch.rows_written, size_bytes, seconds)
        store.commit(connection, self._stream.name, last_id, counts)

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

    def _store_all_valid(self, total: Drained, deadline: float) -> None:
        """Call `_store_valid` until the end of the stream, `deadline` or an error of a store."""
        with suppress(Unavailable):
            while self._store_valid(total) and self._clock() < deadline:
                pass

    def _store_valid(self, total: Drained) -> bool:
        """Store valid messages from behind the entries at the beginning of the stream, which cannot be stored now.

        Returns whether the stream may have further ones. Messages of sources that have invalid entries are not
        stored, because that would change their order, nor are those of jobs that another session has locked.
        """
        with self._leased() as connection:
            if connection is None:
                return False
            began, began_ns = self._clock(), time.time_ns()
            arrivals = self._decode_valid(self._lookahead.read(START, self._with_invalid))
            arrivals = self._without_locked(connection, arrivals)
            if not arrivals:
                self._lookahead.save(())
                return self._lookahead.found_invalid or not self._lookahead.is_at_end
            with self._traced(arrivals, began_ns) as traces:
                try:
                    batch = self._store(connection, arrivals)
                except MostlyInvalid:
                    # Decoded, but with impossible numbers: the next look-ahead skips their sources.
                    return True
                last_id = store.last_id_of(connection, self._stream.name)
                self._commit(connection, last_id, arrivals, batch, began)
        self._stream.acknowledge(batch.acks())
        self._lookahead.save(arrival.raw for arrival in arrivals)
        self._count(total, batch, len(arrivals), traces)
        # A look-ahead that starts again reads the entry of `State.held` once more: that is no progress.
        has_progress = batch.stored > 0 or len(arrivals) > 1
        return (self._lookahead.is_partial and has_progress) or not self._lookahead.is_at_end

    def _decode_valid(self, entries: Sequence[RawEntry]) -> list[Arrival]:
        """Decode up to one batch of entries that were read ahead; return those of sources without invalid entries.

        All others are marked as skipped in the look-ahead.
        """
        arrivals, _ = decode_batch(self._stream.kind, entries, {}, self._batch_bytes)
        with_invalid = {source_of(arrival.raw) for arrival in arrivals if isinstance(arrival.content, Rejected)}
        invalid = [arrival.raw for arrival in arrivals if source_of(arrival.raw) in with_invalid]
        self._lookahead.skip(invalid, are_invalid=True)
        self._lookahead.skip(entries[len(arrivals) :], are_invalid=False)
        return [arrival for arrival in arrivals if source_of(arrival.raw) not in with_invalid]

    def _without_locked(self, connection: Connection, arrivals: Sequence[Arrival]) -> list[Arrival]:
        """Return the arrivals of jobs that no other session has locked; mark the others as skipped."""
        job_ids = {arrival.content.job_id for arrival in arrivals if arrival.content.job_id is not None}
        locked = store.locked_jobs(connection, job_ids)
        self._locked_jobs |= locked
        skipped = (arrival.raw for arrival in arrivals if arrival.content.job_id in locked)
        self._lookahead.skip(skipped, are_invalid=False)
        return [arrival for arrival in arrivals if arrival.content.job_id not in locked]

    def _count(self, total: Drained, batch: Batch, entries: int, traces: Mapping[int, str]) -> None:
        """Add the counts of a committed batch to `total`; call `on_commit` if the batch stored messages."""
        total.entries += entries
        total.stored += batch.stored
        total.duplicates += batch.duplicates
        total.dead_lettered += len(batch.letters)
        if self._on_commit is not None and batch.stored:
            self._on_commit(batch.changes(traces))

    def _decode(self, entries: Sequence[RawEntry], rejections: Mapping[str, Rejected]) -> list[Arrival]:
        """Decode one batch, and set the number of bytes for the next read from its size."""
        arrivals, is_full = decode_batch(self._stream.kind, entries, rejections, self._batch_bytes)
        if is_full:
            self._read_bytes = max(sum(arrival.raw.held_bytes for arrival in arrivals), _SMALLEST_READ_BYTES)
        else:
            self._read_bytes = min(self._read_bytes * 2, self._batch_bytes)
        return arrivals
