"""One round of a delivery: jobs by the dozen, what comes next is read while what was read before is sent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from typing import Final, Generic

from sqlalchemy import Engine

from trainwire.schemas.backoff import Backoff
from trainwire.workers.sinks import cursors
from trainwire.workers.sinks.backlog import SinkBacklog
from trainwire.workers.sinks.base import Batch, BatchT, Delivered, DeliveredT, Sink, SinkUnavailable

MOST_CHUNK_JOBS: Final = 32
"""Jobs whose rows are read, and whose cursors are moved, in one transaction."""
CHUNK_ROWS: Final = 40_000
FIRST_ROWS: Final = 8_000
"""The sink waits for a chunk's first read: of few jobs with long backlogs it is a short one."""
FIRST_ROWS_PER_JOB: Final = 1000
CHUNK_BYTES: Final = 8 * 1024 * 1024
CHUNKS_AT_ONCE: Final = 2
"""While one commits, the other sends."""
ROUND_READS: Final = 16
"""A round of few jobs reads so often, that of many no more than once for each chunk."""
PUSHES_AT_ONCE: Final = 4
"""Each for another job."""


class Round(Generic[BatchT, DeliveredT]):
    """One turn for each of some leased jobs; once the sink is found to be away, no other job tries.

    A job that has failed before (`failed`: how often), and fails again by what may be its own doing, says nothing
    about the sink: it waits alone, longer each time, and the others go on.

    Nor does one when time is up, the first excepted: a slow sink gets on by at least that one. Who has had no
    turn is the first of the next round.
    """

    def __init__(
        self,
        engine: Engine,
        backlog: SinkBacklog[BatchT, DeliveredT],
        sink: Sink[BatchT, DeliveredT],
        *,
        is_late: Callable[[], bool],
        failed: Mapping[int, int],
        backoff: Backoff,
    ) -> None:
        self._engine = engine
        self._backlog = backlog
        self._sink = sink
        self._is_late = is_late
        self._failed = failed
        self._backoff = backoff
        self.has_answer = False
        self.has_failed = False
        self._has_begun = False
        self._away = threading.Event()
        self._pushes = ThreadPoolExecutor(PUSHES_AT_ONCE)
        self._reads = ThreadPoolExecutor(CHUNKS_AT_ONCE)

    def give(self, leased: Sequence[int]) -> int:
        """Deliver the next rows of these jobs; return how many the sink has refused.

        Raises `SinkUnavailable` once what did arrive is confirmed.
        """
        size = max(1, min(MOST_CHUNK_JOBS, ceil(len(leased) / CHUNKS_AT_ONCE)))
        parts = [leased[begin : begin + size] for begin in range(0, len(leased), size)]
        with self._pushes, self._reads, ThreadPoolExecutor(CHUNKS_AT_ONCE) as chunks:
            done = [chunks.submit(self._chunk, part, max(1, ROUND_READS // len(parts))) for part in parts]
        return sum(chunk.result() for chunk in done)

    def _chunk(self, job_ids: Sequence[int], most_reads: int) -> int:
        """Deliver the next batches of some jobs; return how many rows the sink has refused."""
        if self._must_end():
            return 0
        most_rows, most_bytes = CHUNK_ROWS // len(job_ids), CHUNK_BYTES // len(job_ids)
        first_rows = min(most_rows, max(FIRST_ROWS // len(job_ids), FIRST_ROWS_PER_JOB))
        with self._engine.begin() as connection:
            batches = self._backlog.read(connection, job_ids, first_rows, most_bytes)
        refused = 0
        for left in reversed(range(most_reads)):
            ahead = self._reads.submit(self._read_on, batches if left else {}, most_rows, most_bytes)
            last: dict[int, DeliveredT] = {}
            for delivered in self._parts(batches):
                refused += sum(len(done.refused) for done in delivered.values())
                last |= delivered
            batches = {
                job_id: batch
                for job_id, batch in ahead.result().items()
                if job_id in last and _follows(batch, last[job_id])
            }
        return refused

    def _read_on(self, batches: Mapping[int, BatchT], most_rows: int, most_bytes: int) -> Mapping[int, BatchT]:
        """Read what comes after batches that are not delivered yet."""
        followed = {job_id: batch for job_id, batch in batches.items() if batch.is_followed}
        if not followed:
            return {}
        with self._engine.begin() as connection:
            return self._backlog.read_on(connection, followed, most_rows, most_bytes)

    def _parts(self, batches: Mapping[int, BatchT]) -> Iterator[Mapping[int, DeliveredT]]:
        """Send batches part by part, of all jobs at once; yield what is confirmed."""
        turns = {job_id: self._sink.deliver(job_id, batch) for job_id, batch in batches.items()}
        while turns:
            delivered = self._next_parts(turns)
            yield delivered
            turns = {job_id: turns[job_id] for job_id, done in delivered.items() if done.more}

    def _next_parts(self, turns: Mapping[int, Iterator[DeliveredT]]) -> Mapping[int, DeliveredT]:
        """Send the next part of each job, and confirm in one transaction what the sink has proven to have."""
        sending = {job_id: self._pushes.submit(self._send, job_id, turn) for job_id, turn in turns.items()}
        delivered: dict[int, DeliveredT] = {}
        failures: dict[int, SinkUnavailable] = {}
        for job_id, sent in sending.items():
            try:
                done = sent.result()
            except SinkUnavailable as exc:
                failures[job_id] = exc
            else:
                if done is not None:
                    delivered[job_id] = done
        with self._engine.begin() as connection:
            self._backlog.confirm(connection, delivered)
            for job_id, failure in failures.items():
                wait_s = self._wait_s(job_id) if failure.may_be_the_jobs else None
                cursors.note_failure(connection, self._sink.name, job_id, str(failure), wait_s)
        self.has_answer |= any(done.is_answer for done in delivered.values())
        self.has_failed |= bool(failures)
        for job_id, failure in failures.items():
            if not self._fails_alone(job_id, failure):
                raise failure
        return delivered

    def _fails_alone(self, job_id: int, failure: SinkUnavailable) -> bool:
        return failure.may_be_the_jobs and job_id in self._failed

    def _wait_s(self, job_id: int) -> float:
        return self._backoff.delay_s(self._failed.get(job_id, 0) + 1)

    def _send(self, job_id: int, turn: Iterator[DeliveredT]) -> DeliveredT | None:
        """Send a part; None where time is up, or another has just found out that the sink is away."""
        if self._must_end():
            return None
        self._has_begun = True
        try:
            return next(turn)
        except SinkUnavailable as exc:
            if not self._fails_alone(job_id, exc):
                self._away.set()
            raise

    def _must_end(self) -> bool:
        return self._away.is_set() or (self._has_begun and self._is_late())


def _follows(batch: Batch, before: Delivered) -> bool:
    """Tell whether a batch that was read ahead begins where the one before it has ended, whole."""
    return before.confirmed_seq == batch.confirmed_seq and not before.refused
