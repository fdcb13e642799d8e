"""Rows to a sink; the cursor moves on proof only."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic

from sqlalchemy import Connection, Engine

from trainwire.schemas.backoff import Backoff
from trainwire.workers.drain.store import postgres_errors
from trainwire.workers.sinks import cursors
from trainwire.workers.sinks.backlog import SinkBacklog
from trainwire.workers.sinks.base import BatchT, DeliveredT, Sink, SinkUnavailable
from trainwire.workers.sinks.round import Round

ROUND_JOBS: Final = 200
"""Jobs that each have a turn before the first has its next: a long backlog does not starve a live job."""
PROBE_TIMEOUT_S: Final = 30.0


@dataclass(slots=True)
class DeliveryReport:
    """What one delivery did; `more` when its time was over before the sink had everything."""

    refused: int = 0
    more: bool = False


class Delivery(Generic[BatchT, DeliveredT]):
    """Delivers to one sink what waits for it, for all jobs."""

    def __init__(
        self,
        engine: Engine,
        backlog: SinkBacklog[BatchT, DeliveredT],
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

        While the sink is known to be away nothing is sent but one probe when its time has come. A failure that may
        be its job's own doing counts as the sink's the first time, until another job's success tells; when the job
        fails so again, it waits alone.
        """
        report = DeliveryReport()
        deadline = self._clock() + self._slice_s
        with postgres_errors():
            if not self._may_send(report, deadline):
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

    def _may_send(self, report: DeliveryReport, deadline: float) -> bool:
        """Tell whether the sink answers; where it did not, find out with one job's request."""
        with self._engine.begin() as connection:
            state = cursors.sink_state(connection, self._sink.name)
            if state.next_probe_at is None:
                return True
            probed = self._least_failed_first(connection) if state.is_due else []
            if not probed or not cursors.claim_probe(connection, self._sink.name, PROBE_TIMEOUT_S):
                return False
        if not self._answers(probed, report, deadline):
            return False
        with self._engine.begin() as connection:
            cursors.mark_up(connection, self._sink.name)
        return True

    def _answers(self, probed: Sequence[int], report: DeliveryReport, deadline: float) -> bool:
        """Deliver the first of these jobs for which there is something to ask the sink."""
        for job_id in probed:
            turns = self._round([job_id], report, deadline)
            if turns is None or turns.has_failed:
                return False
            if turns.has_answer:
                return True
        return False

    def _least_failed_first(self, connection: Connection) -> list[int]:
        """Return jobs that wait, first those whose failure would tell most about the sink."""
        job_ids = self._backlog.jobs_behind(connection, ROUND_JOBS)
        failed = cursors.failed_attempts(connection, self._sink.name, job_ids)
        return sorted(job_ids, key=lambda job_id: failed.get(job_id, 0))

    def _jobs_behind(self, limit: int) -> list[int]:
        with self._engine.begin() as connection:
            return self._backlog.jobs_behind(connection, limit)

    def _round(
        self, job_ids: Sequence[int], report: DeliveryReport, deadline: float
    ) -> Round[BatchT, DeliveredT] | None:
        """Give these jobs a turn, while there is time; None when others deliver all of them."""
        # The leases end with this transaction, or with this process, whichever is first.
        with self._engine.begin() as leases:
            leased = cursors.lease_jobs(leases, self._sink.name, job_ids)
            turns = Round(
                self._engine,
                self._backlog,
                self._sink,
                is_late=lambda: self._clock() >= deadline,
                failed=cursors.failed_attempts(leases, self._sink.name, leased),
                backoff=self._backoff,
            )
            try:
                report.refused += turns.give(leased)
            except SinkUnavailable as exc:
                self._mark_down(exc)
                raise
        return turns if leased else None

    def _mark_down(self, exc: SinkUnavailable) -> None:
        with self._engine.begin() as connection:
            attempts = cursors.sink_state(connection, self._sink.name).attempts + 1
            wait_s = exc.retry_after_s if exc.retry_after_s is not None else self._backoff.delay_s(attempts)
            cursors.mark_down(connection, self._sink.name, str(exc), wait_s)
