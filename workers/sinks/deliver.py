"""Delivers rows to a sink.

Jobs take turns. While the rows of a batch are being sent, the next ones are read, if the sink's backlog reads
ahead. A cursor moves only when the sink has confirmed the rows before it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from typing import Final, Generic

from sqlalchemy import Connection, Engine
from structlog.contextvars import bound_contextvars

from trainwire.schemas.backoff import Backoff
from trainwire.stores.tracing import span
from trainwire.workers.drain.store import postgres_errors
from trainwire.workers.job_traces import NO_TRACES
from trainwire.workers.sinks import cursors
from trainwire.workers.sinks.base import BatchT, Delivered, DeliveredT, RowBatch, Sink, SinkUnavailable
from trainwire.workers.sinks.plugin import SinkBacklog

ROUND_JOBS: Final = 200
"""Maximum number of jobs in a round. Each has one turn in it: so jobs with many rows do not delay the others."""
PROBE_TIMEOUT_S: Final = 30.0

MOST_CHUNK_JOBS: Final = 32
"""Maximum number of jobs whose rows are read, and whose cursors are moved, in one transaction (a chunk)."""
CHUNK_ROWS: Final = 40_000
FIRST_ROWS: Final = 8_000
"""Rows in the first read of a chunk: fewer than in later reads, because the sink is idle until it has ended.

With many jobs there are more, because up to `FIRST_ROWS_PER_JOB` rows are read for each.
"""
FIRST_ROWS_PER_JOB: Final = 1000
CHUNK_BYTES: Final = 8 * 1024 * 1024
CHUNKS_AT_ONCE: Final = 2
"""Maximum number of concurrent chunks: one can send while the other commits."""
ROUND_READS: Final = 16
"""Maximum number of reads in a round, divided among its chunks; each chunk has at least one."""
PUSHES_AT_ONCE: Final = 4
"""Maximum number of jobs of a round whose rows are sent concurrently."""


@dataclass(slots=True)
class DeliveryReport:
    """The result of a delivery: the number of rows that the sink refused.

    `more` is True if the delivery stopped because its time slice had ended: rows may then remain.
    """

    refused: int = 0
    more: bool = False


class Delivery(Generic[BatchT, DeliveredT]):
    """Delivers the rows of all jobs that are behind to one sink, for about `slice_s` seconds per `run`.

    `backoff` computes the delays before the sink, or a single job, is tried again. `find_traces` returns the
    `traceparent` of those jobs whose run is traced.
    """

    def __init__(
        self,
        engine: Engine,
        backlog: SinkBacklog[BatchT, DeliveredT],
        sink: Sink[BatchT, DeliveredT],
        *,
        slice_s: float,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
        find_traces: Callable[[Sequence[int]], Mapping[int, str]] = lambda _: NO_TRACES,
    ) -> None:
        self._engine = engine
        self._backlog = backlog
        self._sink = sink
        self._slice_s = slice_s
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._find_traces = find_traces

    def run(self) -> DeliveryReport:
        """Deliver rows until none is left, the time slice ends, or other workers have the leases on all jobs.

        While the sink is marked as down, only one probe is sent each time its backoff has elapsed; if the sink
        accepts it, the delivery continues. The first failure that the job's own data may have caused also marks
        the sink as down. Once the delivery of another job has succeeded, only the failed job is retried later.
        Raises `SinkUnavailable` after a failure that marks the sink as down, and `Unavailable` if Postgres does
        not answer.
        """
        report = DeliveryReport()
        deadline = self._clock() + self._slice_s
        with postgres_errors():
            if not self._is_reachable(report, deadline):
                return report
            while job_ids := self._jobs_behind(ROUND_JOBS):
                if self._round(job_ids, report, deadline) is None:
                    return report
                if self._clock() >= deadline:
                    report.more = True
                    return report
            with self._engine.begin() as connection:
                self._backlog.settle(connection)
        return report

    def _is_reachable(self, report: DeliveryReport, deadline: float) -> bool:
        """Return whether the sink is reachable.

        If it is marked as down and a probe is due, send the probe first.
        """
        with self._engine.begin() as connection:
            state = cursors.sink_state(connection, self._sink.name)
            if state.next_probe_at is None:
                return True
            probed = self._least_failed_first(connection) if state.is_due else []
            if not probed or not cursors.claim_probe(connection, self._sink.name, PROBE_TIMEOUT_S):
                return False
        if not self._probe(probed, report, deadline):
            return False
        with self._engine.begin() as connection:
            cursors.mark_up(connection, self._sink.name)
        return True

    def _probe(self, probed: Sequence[int], report: DeliveryReport, deadline: float) -> bool:
        """Deliver the jobs one by one until a request was sent; return whether the sink accepted it.

        Returns False as well if another worker has the lease of a job, or if no job needs a request.
        """
        for job_id in probed:
            delivered = self._round([job_id], report, deadline)
            if delivered is None or delivered.has_failed:
                return False
            if delivered.has_answer:
                return True
        return False

    def _least_failed_first(self, connection: Connection) -> list[int]:
        """Return up to `ROUND_JOBS` jobs that are behind; those with the fewest failures come first."""
        job_ids = self._backlog.jobs_behind(connection, ROUND_JOBS)
        failed = cursors.failed_attempts(connection, self._sink.name, job_ids)
        return sorted(job_ids, key=lambda job_id: failed.get(job_id, 0))

    def _jobs_behind(self, limit: int) -> list[int]:
        with self._engine.begin() as connection:
            return self._backlog.jobs_behind(connection, limit)

    def _round(
        self, job_ids: Sequence[int], report: DeliveryReport, deadline: float
    ) -> DeliveryRound[BatchT, DeliveredT] | None:
        """Deliver one round of those jobs whose leases are free; return None if there are none."""
        # The leases end with this transaction, or with this process, whichever is first.
        with self._engine.begin() as leases:
            leased = cursors.lease_jobs(leases, self._sink.name, job_ids)
            delivered = DeliveryRound(
                self._engine,
                self._backlog,
                self._sink,
                is_late=lambda: self._clock() >= deadline,
                failed=cursors.failed_attempts(leases, self._sink.name, leased),
                backoff=self._backoff,
                traces=self._find_traces(leased),
            )
            try:
                report.refused += delivered.run(leased)
            except SinkUnavailable as exc:
                self._mark_down(exc)
                raise
        return delivered if leased else None

    def _mark_down(self, exc: SinkUnavailable) -> None:
        with self._engine.begin() as connection:
            attempts = cursors.sink_state(connection, self._sink.name).attempts + 1
            wait_s = exc.retry_after_s if exc.retry_after_s is not None else self._backoff.delay_s(attempts)
            cursors.mark_down(connection, self._sink.name, str(exc), wait_s)


class DeliveryRound(Generic[BatchT, DeliveredT]):
    """Delivers the next rows of some jobs to a sink, in one turn per job; this worker must have their leases.

    `failed` is the number of earlier failures by job. If one of these jobs fails again, and its own data may be
    the cause, only this job is retried later with a growing backoff; the other jobs continue. After any other
    failure no further part is sent.

    `is_late` returns whether the time slice has ended. Then no further part is sent; but the first one always is,
    so that a slow sink makes progress too. Jobs that did not begin come first in the next round.

    After `run`, `has_answer` is True if the sink has confirmed a request, and `has_failed` if a request failed.
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
        traces: Mapping[int, str] = NO_TRACES,
    ) -> None:
        self._engine = engine
        self._backlog = backlog
        self._sink = sink
        self._is_late = is_late
        self._failed = failed
        self._backoff = backoff
        self._traces = traces
        self.has_answer = False
        self.has_failed = False
        self._has_begun = False
        self._is_unavailable = threading.Event()
        self._pushes = ThreadPoolExecutor(PUSHES_AT_ONCE)
        self._reads = ThreadPoolExecutor(CHUNKS_AT_ONCE)

    def run(self, leased: Sequence[int]) -> int:
        """Deliver the next rows of the leased jobs; return how many rows the sink refused.

        Raises `SinkUnavailable` after a failure that may concern the whole sink, once the cursors of the rows that
        the sink accepted are moved.
        """
        size = max(1, min(MOST_CHUNK_JOBS, ceil(len(leased) / CHUNKS_AT_ONCE)))
        parts = [leased[begin : begin + size] for begin in range(0, len(leased), size)]
        with self._pushes, self._reads, ThreadPoolExecutor(CHUNKS_AT_ONCE) as chunks:
            done = [chunks.submit(self._chunk, part, max(1, ROUND_READS // len(parts))) for part in parts]
        return sum(chunk.result() for chunk in done)

    def _chunk(self, job_ids: Sequence[int], most_reads: int) -> int:
        """Deliver rows of some jobs, read in `most_reads` portions or fewer; return how many rows were refused."""
        if self._must_end():
            return 0
        most_rows, most_bytes = CHUNK_ROWS // len(job_ids), CHUNK_BYTES // len(job_ids)
        first_rows = min(most_rows, max(FIRST_ROWS // len(job_ids), FIRST_ROWS_PER_JOB))
        with self._engine.begin() as connection:
            batches = self._backlog.read(connection, job_ids, first_rows, most_bytes)
        refused = 0
        for left in reversed(range(most_reads)):
            ahead = self._reads.submit(self._read_ahead, batches if left else {}, most_rows, most_bytes)
            parts: dict[int, list[DeliveredT]] = {}
            for delivered in self._send_batches(batches):
                for job_id, done in delivered.items():
                    refused += len(done.refused)
                    parts.setdefault(job_id, []).append(done)
            batches = {
                job_id: batch
                for job_id, batch in ahead.result().items()
                if job_id in parts and _continues(batch, parts[job_id])
            }
        return refused

    def _read_ahead(self, batches: Mapping[int, BatchT], most_rows: int, most_bytes: int) -> Mapping[int, BatchT]:
        """Read the rows that follow those `batches` whose `is_followed` is True, while they are being sent."""
        followed = {job_id: batch for job_id, batch in batches.items() if batch.is_followed}
        if not followed:
            return {}
        with self._engine.begin() as connection:
            return self._backlog.read_on(connection, followed, most_rows, most_bytes)

    def _send_batches(self, batches: Mapping[int, BatchT]) -> Iterator[Mapping[int, DeliveredT]]:
        """Send all batches concurrently, part by part; yield the results of the confirmed parts, by job."""
        turns = {job_id: self._sink.deliver(job_id, batch) for job_id, batch in batches.items()}
        while turns:
            delivered = self._send_parts(turns)
            yield delivered
            turns = {job_id: turns[job_id] for job_id, done in delivered.items() if done.more}

    def _send_parts(self, turns: Mapping[int, Iterator[DeliveredT]]) -> Mapping[int, DeliveredT]:
        """Send the next part of each job, then confirm all parts that the sink accepted in one transaction.

        Returns the results of these parts, by job. The transaction also records failures; one that may concern the
        whole sink is raised as `SinkUnavailable`.
        """
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
                wait_s = (
                    self._backoff.delay_s(self._failed.get(job_id, 0) + 1) if failure.may_be_the_jobs else None
                )
                cursors.note_failure(connection, self._sink.name, job_id, str(failure), wait_s)
        self.has_answer |= any(done.is_answer for done in delivered.values())
        self.has_failed |= bool(failures)
        for job_id, failure in failures.items():
            if not self._fails_alone(job_id, failure):
                raise failure
        return delivered

    def _send(self, job_id: int, turn: Iterator[DeliveredT]) -> DeliveredT | None:
        """Send the next part of a job; return None without a request if the round has to end."""
        if self._must_end():
            return None
        self._has_begun = True
        parents = [self._traces.get(job_id)]
        try:
            with (
                bound_contextvars(job_id=job_id, sink=self._sink.name),
                span("deliver", parents, kind="client", job_id=job_id, sink=self._sink.name),
            ):
                return next(turn)
        except SinkUnavailable as exc:
            if not self._fails_alone(job_id, exc):
                self._is_unavailable.set()
            raise

    def _fails_alone(self, job_id: int, failure: SinkUnavailable) -> bool:
        return failure.may_be_the_jobs and job_id in self._failed

    def _must_end(self) -> bool:
        return self._is_unavailable.is_set() or (self._has_begun and self._is_late())


def _continues(batch: RowBatch, before: Sequence[Delivered]) -> bool:
    """Return whether `batch`, which was read ahead, follows the parts `before`, of which no row was refused.

    `before` are all parts that were sent of the batch before. After a refusal in any of them the rows are read
    again, because they were read ahead as if the sink had accepted all rows before.
    """
    return before[-1].confirmed_seq == batch.confirmed_seq and not any(part.refused for part in before)
