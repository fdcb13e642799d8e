"""Rows after a sink's cursor to the sink; the cursor moves on proof."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final

from sqlalchemy import Engine

from workers import cursors
from workers.backoff import Backoff
from workers.sinks.base import Delivered, LogRow, LogSink, SinkUnavailable
from workers.store import postgres_errors

ROUND_JOBS: Final = 200
"""Jobs that each have a turn before the first has its next: a long backlog does not starve a live job."""
CHUNK_JOBS: Final = 32
"""Jobs whose rows are read, and whose cursors are moved, in one transaction."""
CHUNK_ROWS: Final = 20_000
CHUNK_BYTES: Final = 16 * 1024 * 1024
PUSHES_AT_ONCE: Final = 4
"""Each for another job."""
PROBE_TIMEOUT_S: Final = 30.0


@dataclass(slots=True)
class DeliveryReport:
    """What one delivery did; `more` when its time was over before the sink had everything."""

    rows: int = 0
    refused: int = 0
    more: bool = False


class Delivery:
    """Delivers the log rows of all jobs to one sink."""

    def __init__(
        self,
        engine: Engine,
        sink: LogSink,
        *,
        slice_s: float,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
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
            if not self._may_send(report):
                return report
            while job_ids := self._jobs_behind(ROUND_JOBS):
                if not self._round(job_ids, report):
                    return report
                if self._clock() >= deadline:
                    report.more = True
                    return report
        return report

    def _may_send(self, report: DeliveryReport) -> bool:
        """Tell whether the sink answers; where it did not, find out with one job."""
        with self._engine.begin() as connection:
            state = cursors.sink_state(connection, self._sink.name)
            if state.next_probe_at is None:
                return True
            if not state.is_due or not cursors.claim_probe(connection, self._sink.name, PROBE_TIMEOUT_S):
                return False
        probed = self._jobs_behind(1)
        if not probed or not self._round(probed, report):
            return False
        with self._engine.begin() as connection:
            cursors.mark_up(connection, self._sink.name)
        return True

    def _jobs_behind(self, limit: int) -> list[int]:
        with self._engine.begin() as connection:
            return cursors.jobs_behind(connection, self._sink.name, limit)

    def _round(self, job_ids: Sequence[int], report: DeliveryReport) -> bool:
        """Give each of these jobs a turn; False when others deliver all of them."""
        # The leases end with this transaction, or with this process, whichever is first.
        with self._engine.begin() as leases, ThreadPoolExecutor(PUSHES_AT_ONCE) as pool:
            leased = cursors.lease_jobs(leases, self._sink.name, job_ids)
            for begin in range(0, len(leased), CHUNK_JOBS):
                self._chunk(leased[begin : begin + CHUNK_JOBS], pool, report)
        return bool(leased)

    def _chunk(self, job_ids: Sequence[int], pool: ThreadPoolExecutor, report: DeliveryReport) -> None:
        """Send the next rows of some jobs, and confirm in one transaction what the sink has proven to have."""
        with self._engine.begin() as connection:
            known = cursors.read_cursors(connection, self._sink.name, job_ids)
            after = {job_id: cursor.confirmed_seq for job_id, cursor in known.items()}
            rows = cursors.read_rows(connection, after, CHUNK_ROWS // len(job_ids), CHUNK_BYTES // len(job_ids))
        send = partial(self._send, away=threading.Event())
        turns = {job_id: pool.submit(send, job_id, batch, known[job_id]) for job_id, batch in rows.items()}
        failure: SinkUnavailable | None = None
        with self._engine.begin() as connection:
            for job_id, turn in turns.items():
                try:
                    delivered = turn.result()
                except SinkUnavailable as exc:
                    cursors.note_failure(connection, self._sink.name, job_id, str(exc))
                    failure = exc
                    continue
                if delivered is not None:
                    cursors.confirm(connection, self._sink.name, job_id, delivered)
                    report.rows += delivered.confirmed_seq - after[job_id]
                    report.refused += len(delivered.refused)
        if failure is not None:
            self._mark_down(failure)
            raise failure

    def _send(
        self, job_id: int, rows: Sequence[LogRow], cursor: cursors.DeliveryCursor, away: threading.Event
    ) -> Delivered | None:
        """Send rows of one job; None where another job has just found out that the sink is away."""
        if away.is_set():
            return None
        try:
            return self._sink.deliver(job_id, rows, cursor.newest_ns)
        except SinkUnavailable:
            away.set()
            raise

    def _mark_down(self, exc: SinkUnavailable) -> None:
        with self._engine.begin() as connection:
            attempts = cursors.sink_state(connection, self._sink.name).attempts + 1
            wait_s = exc.retry_after_s if exc.retry_after_s is not None else self._backoff.delay_s(attempts)
            cursors.mark_down(connection, self._sink.name, str(exc), wait_s)
