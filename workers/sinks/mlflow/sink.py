"""Writes jobs to MLflow: each attempt has a run, which ends after its last metric."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Final

from trainwire.schemas.wire.messages import FINISHED
from trainwire.stores.mlflow.http import EXISTS, INVALID, MISSING, MlflowApi, MlflowRefused, MlflowUnavailable
from trainwire.workers.sinks.base import RefusedRow, SinkUnavailable
from trainwire.workers.sinks.mlflow.rows import (
    AttemptState,
    DeliveredMetrics,
    MetricBatch,
    MetricRow,
    MirroredAttempt,
)
from trainwire.workers.sinks.mlflow.rules import STOPPED, Notes, metric_requests, metrics_of
from trainwire.workers.sinks.mlflow.run import SEARCHED_VALUES, ManyRefused, RunGone, RunMirror

MOST_VALUES: Final = 2000
"""Maximum number of values of one job in a turn: two requests, half a second on a server with SQLite.

A single row may have more.
"""


class MlflowSink:
    """Writes metrics and attempts to MLflow. Several threads may use it at the same time."""

    name: Final = "mlflow"

    def __init__(self, api: MlflowApi, experiment: str) -> None:
        self._api = api
        self._experiment = experiment
        self._experiment_id: str | None = None
        self._lock = threading.Lock()

    def deliver(self, job_id: int, batch: MetricBatch) -> Iterator[DeliveredMetrics]:
        """Send a prefix of the rows, and the attempts that have changed; see `Sink`."""
        try:
            yield self._deliver(job_id, batch)
        except MlflowUnavailable as exc:
            raise SinkUnavailable(
                str(exc), exc.retry_after_s, may_be_the_jobs=exc.failed_inside and exc.retry_after_s is None
            ) from exc
        except MlflowRefused as exc:
            refusal = f"MLflow refuses a valid request ({exc.code}): {exc}"
            raise SinkUnavailable(refusal, may_be_the_jobs=True) from exc

    def _deliver(self, job_id: int, batch: MetricBatch) -> DeliveredMetrics:
        try:
            return self._deliver_rows(job_id, batch, _first(batch.rows, MOST_VALUES))
        except ManyRefused:
            # Some values are sent twice; MLflow keeps one of two identical values.
            return self._deliver_rows(job_id, batch, _first(batch.rows, SEARCHED_VALUES))

    def _deliver_rows(self, job_id: int, batch: MetricBatch, rows: Sequence[MetricRow]) -> DeliveredMetrics:
        confirmed_seq = rows[-1].seq if rows else max(batch.confirmed_seq, batch.last_seq)
        delivered = DeliveredMetrics(confirmed_seq, is_answer=False)
        for attempt in batch.attempts:
            of_attempt = [row for row in rows if row.attempt == attempt.attempt]
            if of_attempt or attempt.has_changed:
                is_all = attempt.is_settled and confirmed_seq >= batch.last_seq
                delivered.attempts.append(self._mirror(job_id, attempt, of_attempt, is_all, delivered.refused))
                delivered.is_answer |= _is_mirrored(attempt)
        return delivered

    def _mirror(
        self,
        job_id: int,
        attempt: AttemptState,
        rows: Sequence[MetricRow],
        is_all: bool,
        refused: list[RefusedRow],
    ) -> MirroredAttempt:
        """Update the MLflow run that workers create for an attempt; return its new state.

        The run is not updated if it was deleted in MLflow. If the trainer logs to a run that it created itself, no
        other is created, and one that workers had created before is ended. Rows that MLflow refuses are appended
        to `refused`. `is_all` is True if no later metric of the attempt is expected.
        """
        notes = Notes(attempt.mirror_notes)
        run = RunMirror(self._api, job_id, attempt, notes)
        run_id = attempt.mirror_run_id
        try:
            if attempt.mlflow_run_id is not None:
                if run_id and attempt.has_changed:
                    run.supersede(attempt.mlflow_run_id)
                    notes.add("run", f"the trainer logs to {attempt.mlflow_run_id}: {run_id} has ended")
            elif STOPPED not in notes.texts:
                run_id = run.open(self.open_experiment())
                if attempt.has_changed:
                    run.describe()
                for request in metric_requests(metric for row in rows for metric in metrics_of(row, notes)):
                    refused += run.log(request)
                if attempt.has_changed and is_all:
                    run.end()
        except RunGone:
            notes.add(STOPPED, f"run {run_id} was deleted in MLflow: a replay makes a new one")
        return MirroredAttempt(attempt, run_id, _mirrored_changes(attempt, is_all, notes), notes.texts)

    def open_experiment(self) -> str:
        """Return the id of the experiment; create the experiment if it does not exist.

        Raises the errors of `trainwire.stores.mlflow.http`, also if the experiment was deleted in MLflow.
        """
        with self._lock:
            if self._experiment_id is None:
                self._experiment_id = self._find_experiment() or self._create_experiment()
            return self._experiment_id

    def _find_experiment(self) -> str | None:
        try:
            found = self._api.get("experiments/get-by-name", experiment_name=self._experiment)["experiment"]
        except MlflowRefused as exc:
            if exc.code == MISSING:
                return None
            raise
        if found["lifecycle_stage"] != "active":
            raise MlflowUnavailable(
                f"experiment {self._experiment!r} is deleted in MLflow: restore it there, or name another one "
                "with MLFLOW_EXPERIMENT"
            )
        return str(found["experiment_id"])

    def _create_experiment(self) -> str:
        try:
            return str(self._api.post("experiments/create", name=self._experiment)["experiment_id"])
        except MlflowRefused as exc:
            # Another worker has created it; servers report this by either code.
            if exc.code in {EXISTS, INVALID} and (found := self._find_experiment()):
                return found
            raise


def _first(rows: Sequence[MetricRow], most_values: int) -> Sequence[MetricRow]:
    """Return as many of the first rows as have at most `most_values` values together, but at least one if any."""
    values = 0
    for number, row in enumerate(rows):
        values += len(row.values)
        if values > most_values and number:
            return rows[:number]
    return rows


def _is_mirrored(attempt: AttemptState) -> bool:
    return attempt.mlflow_run_id is None and STOPPED not in (attempt.mirror_notes or {})


def _mirrored_changes(attempt: AttemptState, is_all: bool, notes: Notes) -> int:
    """Return how many changes of the attempt MLflow has received, to be stored in Postgres.

    If the attempt has ended and its last metric is not sent yet, the earlier number is returned: then the end is
    sent with a later delivery.
    """
    is_over = attempt.mlflow_run_id is not None or STOPPED in notes.texts
    has_open_end = attempt.status in {*FINISHED, "lost"} and not is_all
    return attempt.mirrored_changes if has_open_end and not is_over else attempt.changes
