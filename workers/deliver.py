"""Rows to a sink; the cursor moves on proof only."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Generic

from sqlalchemy import Engine

from workers import cursors
from workers.backoff import Backoff
from workers.sinks.base import Backlog, BatchT, DeliveredT, Sink, SinkUnavailable
from workers.store import postgres_errors

ROUND_JOBS: Final = 200
"""Jobs that each have a turn before the first has its next: a long backlog does not starve a live job."""
CHUNK_JOBS: Final = 32
"""Jobs whose rows are read, and whose cursors are moved, in one transaction."""
CHUNK_ROWS: Final = 40_000
CHUNK_BYTES: Final = 16 * 1024 * 1024
CHUNKS_AT_ONCE: Final = 2
"""While one is sent, the next is read."""
PUSHES_AT_ONCE: Final = 4
"""Each for another job."""
PROBE_TIMEOUT_S: Final = 30.0


@dataclass(slots=True)
class DeliveryReport:
    """What one delivery did; `more` when its time was over before the sink had everything."""

    jobs: int = 0
    refused: int = 0
    more: bool = False


class Delivery(Generic[BatchT, DeliveredT]):
    """Delivers to one sink what waits for it, for all jobs."""

    def __init__(
        self,
        engine: Engine,
        backlog: Backlog[BatchT, DeliveredT],
        sink: Sink[BatchT, DeliveredT],
        *,
        slice_s: float,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._backlog = backlog
        self._sink = sink
        self._slice_s = slice_s
        self._backoff = backoff or Backoff()
        self._clock = clock

    def run(self) -> DeliveryReport:
        """Deliver what waits, for at most a time slice. Raises `SinkUnavailable` when the sink is away.

        While the sink is known to be away nothing is sent but one probe when its time has come.
        """
        report = DeliveryReport()
        deadline = self._clock() + self._slice_s
        with postgres_errors():
            if not self._may_send(report, deadline):
                return report
            while job_ids := self._jobs_behind(ROUND_JOBS):
                if not self._round(job_ids, report, deadline):
                    return report
                if self._clock() >= deadline:
                    report.more = True
                    return report
        return report

    def _may_send(self, report: DeliveryReport, deadline: float) -> bool:
        """Tell whether the sink answers; where it did not, find out with one job."""
        with self._engine.begin() as connection:
            state = cursors.sink_state(connection, self._sink.name)
            if state.next_probe_at is None:
                return True
            if not state.is_due or not cursors.claim_probe(connection, self._sink.name, PROBE_TIMEOUT_S):
                return False
        probed = self._jobs_behind(1)
        if not probed or not self._round(probed, report, deadline):
            return False
        with self._engine.begin() as connection:
            cursors.mark_up(connection, self._sink.name)
        return True

    def _jobs_behind(self, limit: int) -> list[int]:
        with self._engine.begin() as connection:
            return self._backlog.jobs_behind(connection, limit)

    def _round(self, job_ids: Sequence[int], report: DeliveryReport, deadline: float) -> bool:
        """Give these jobs a turn, while there is time; False when others deliver all of them."""
        # The leases end with this transaction, or with this process, whichever is first.
        with self._engine.begin() as leases:
            leased = cursors.lease_jobs(leases, self._sink.name, job_ids)
            turns = _Round(self._engine, self._backlog, self._sink, lambda: self._clock() >= deadline)
            try:
                turns.give(leased, report)
            except SinkUnavailable as exc:
                self._mark_down(exc)
                raise
        return bool(leased)

    def _mark_down(self, exc: SinkUnavailable) -> None:
        with self._engine.begin() as connection:
            attempts = cursors.sink_state(connection, self._sink.name).attempts + 1
            wait_s = exc.retry_after_s if exc.retry_after_s is not None else self._backoff.delay_s(attempts)
            cursors.mark_down(connection, self._sink.name, str(exc), wait_s)


class _Round(Generic[BatchT, DeliveredT]):
    """One turn for each of some leased jobs; once the sink is found to be away, no other job tries.

    Nor does one when time is up, the first excepted: a slow sink gets on by at least that one. Who has had no
    turn is the first of the next round.
    """

    def __init__(
        self,
        engine: Engine,
        backlog: Backlog[BatchT, DeliveredT],
        sink: Sink[BatchT, DeliveredT],
        is_late: Callable[[], bool],
    ) -> None:
        self._engine = engine
        self._backlog = backlog
        self._sink = sink
        self._is_late = is_late
        self._has_begun = False
        self._away = threading.Event()

    def give(self, leased: Sequence[int], report: DeliveryReport) -> None:
        """Deliver the next rows of these jobs. Raises `SinkUnavailable` once what did arrive is confirmed."""
        parts = [leased[begin : begin + CHUNK_JOBS] for begin in range(0, len(leased), CHUNK_JOBS)]
        with ThreadPoolExecutor(PUSHES_AT_ONCE) as pushes, ThreadPoolExecutor(CHUNKS_AT_ONCE) as chunks:
            done = [chunks.submit(self._chunk, part, pushes) for part in parts]
        for chunk in done:
            delivered = chunk.result()
            report.jobs += len(delivered)
            report.refused += sum(len(of_job.refused) for of_job in delivered.values())

    def _chunk(self, job_ids: Sequence[int], pushes: Executor) -> dict[int, DeliveredT]:
        """Send the next rows of some jobs, and confirm in one transaction what the sink has proven to have."""
        if self._must_end():
            return {}
        with self._engine.begin() as connection:
            batches = self._backlog.read(
                connection, job_ids, CHUNK_ROWS // len(job_ids), CHUNK_BYTES // len(job_ids)
            )
        sending = {job_id: pushes.submit(self._send, job_id, batch) for job_id, batch in batches.items()}
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
                cursors.note_failure(connection, self._sink.name, job_id, str(failure))
        for failure in failures.values():
            raise failure
        return delivered

    def _send(self, job_id: int, batch: BatchT) -> DeliveredT | None:
        """Send rows of one job; None where time is up, or another has just found out that the sink is away."""
        if self._must_end():
            return None
        self._has_begun = True
        try:
            return self._sink.deliver(job_id, batch)
        except SinkUnavailable:
            self._away.set()
            raise

    def _must_end(self) -> bool:
        return self._away.is_set() or (self._has_begun and self._is_late())
