"""Copies jobs to an MLflow server: each attempt becomes an MLflow run (docs/import-export.md)."""

from __future__ import annotations

import math
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, select

from trainwire.cli.transfer.exports.exported_jobs import ExportedJob
from trainwire.cli.transfer.import_report import Count
from trainwire.schemas.tables import training_attempts
from trainwire.stack.errors import Problem
from trainwire.stores.mlflow.http import MlflowApi
from trainwire.stores.mlflow.runs import MlflowRun, get_run, metric_pages
from trainwire.workers.sinks.mlflow.backlog import read_rows
from trainwire.workers.sinks.mlflow.rows import AttemptState, MetricRow
from trainwire.workers.sinks.mlflow.rules import (
    MOST_OF_AN_ATTEMPT,
    MetricValue,
    Notes,
    metric_requests,
    metrics_of,
    params_of,
    tags_of,
)
from trainwire.workers.sinks.mlflow.run import SEARCHED_VALUES, ManyRefused, RunGone, RunMirror
from trainwire.workers.sinks.mlflow.sink import MlflowSink

EQUAL: Final = "equal to another one in name, time, step and value: MLflow keeps one"
NO_LINES: Final = "MLflow has no log lines"
REFUSED: Final = "refused by MLflow: see the notes"
SUPERSEDED: Final = "a newer one has its kind, epoch and step"
MOST_CHECKPOINTS: Final = 500
"""Largest number of checkpoints that are stored as tags of one MLflow run, the newest ones."""
_PAGE_ROWS: Final = 20_000
_PAGE_BYTES: Final = 64 * 1024 * 1024
_READ: Final = ("attempt", "status", "name", "started_at", "completed_at", "params", "tags", "provenance")

_Place = tuple[str, int, int, float | str]
"""Name, step, time in milliseconds and value of a point. MLflow stores equal points only once."""
OnProgress = Callable[[str, int, float | None], None]
"""Called with a text, the number of points that were sent or read, and their share of all points (0 to 1)."""


class ExportedRun(msgspec.Struct, kw_only=True):
    """The counts of one MLflow run; `stored` in a count is the number of items read back from MLflow.

    `sent` is the number of points that this export sent, without those that the run had before.
    """

    job_id: int
    attempt: int
    name: str
    run_id: str
    sent: int
    points: Count
    params: Count
    tags: Count
    checkpoints: Count
    notes: dict[str, str]


class MlflowExportReport(msgspec.Struct, kw_only=True):
    """The report of an export to MLflow: the totals, and the counts of each MLflow run."""

    runs: list[ExportedRun] = []
    points: Count = msgspec.field(default_factory=Count)
    params: Count = msgspec.field(default_factory=Count)
    tags: Count = msgspec.field(default_factory=Count)
    checkpoints: Count = msgspec.field(default_factory=Count)
    lines: Count = msgspec.field(default_factory=Count)
    complete: bool = True

    def add(self, run: ExportedRun) -> None:
        """Add the counts of an MLflow run."""
        self.runs.append(run)
        for kind in ("points", "params", "tags", "checkpoints"):
            count: Count = getattr(run, kind)
            getattr(self, kind).add(count)
            self.complete = self.complete and not count.missing

    def leave_out_lines(self, count: int) -> None:
        """Count the log lines of a job as skipped, because MLflow does not store log lines."""
        if count:
            self.lines.add(Count(source=count, skipped={NO_LINES: count}))


class MlflowExport:
    """Exports jobs to an MLflow experiment; if a run exists already, only missing data is added.

    The constructor and the methods raise `MlflowUnavailable` if MLflow does not respond or fails, and
    `MlflowRefused` if it rejects a request.
    """

    def __init__(self, api: MlflowApi, experiment: str, on_progress: OnProgress) -> None:
        self._api = api
        self._experiment_id = MlflowSink(api, experiment).open_experiment()
        self._on_progress = on_progress

    def export(self, exported: ExportedJob) -> Iterator[ExportedRun]:
        """Export each attempt of a job as an MLflow run; yield the counts of each run.

        All points of the job are held in memory. Raises `Problem` if a run is deleted during the export.
        """
        connection, job = exported.connection, exported.job
        attempts = _attempts(connection, job.id, job.created_at)
        rows: dict[int, list[MetricRow]] = defaultdict(list)
        for row in _rows(connection, job.id):
            rows[row.attempt].append(row)
        checkpoints: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
        for checkpoint in exported.read_checkpoints():
            checkpoints[checkpoint["attempt"]].append(checkpoint)
        for number in sorted({*attempts, *rows, *checkpoints}):
            attempt = attempts.get(number) or _attempt(job.created_at, attempt=number, status="lost")
            yield self._export(job.id, attempt, rows[number], checkpoints[number])

    def _export(
        self, job_id: int, attempt: AttemptState, rows: list[MetricRow], checkpoints: list[Mapping[str, Any]]
    ) -> ExportedRun:
        notes, links = Notes(), _links(checkpoints)
        mirror = RunMirror(self._api, job_id, _with_tags(attempt, links), notes)
        run_id = mirror.open(self._experiment_id)
        name = f"job {job_id} {attempt.name or ''}".strip()
        values = [value for row in rows for value in metrics_of(row, notes)]
        wanted = {_place(value.key, value.step, value.timestamp, value.value): value for value in values}
        stored = self._read_back(run_id, name)
        lacking = [value for place, value in wanted.items() if place not in stored]
        try:
            mirror.describe()
            refused = self._send(mirror, lacking, name, notes)
            mirror.end()
        except RunGone as exc:
            raise Problem(f"run {run_id} was deleted in MLflow during the export: export the job again") from exc
        if lacking:
            stored = self._read_back(run_id, name)
        run = get_run(self._api, run_id)
        if run is None:
            raise Problem(f"run {run_id} was removed from MLflow during the export: export the job again")
        if any(isinstance(value.value, str) and value.value != "NaN" for value in values):
            notes.add("infinities", "are the largest finite number in MLflow")
        skipped = {EQUAL: len(values) - len(wanted), REFUSED: refused}
        return ExportedRun(
            job_id=job_id,
            attempt=attempt.attempt,
            name=attempt.name or "",
            run_id=run_id,
            sent=len(lacking) - refused,
            points=_count(len(values), len(wanted.keys() & stored), skipped),
            params=_texts(attempt.params, params_of(attempt, Notes()), run.params, notes, "param"),
            tags=_texts(attempt.tags, tags_of(attempt, Notes()), run.tags, notes, "tag"),
            checkpoints=_linked(checkpoints, links, run),
            notes=notes.texts,
        )

    def _send(self, mirror: RunMirror, values: Sequence[MetricValue], name: str, notes: Notes) -> int:
        """Send points to MLflow; return how many MLflow refused, and add a note for each of these."""
        refused = sent = 0
        for request in metric_requests(values):
            self._on_progress(name, sent, sent / len(values))
            try:
                found = mirror.log(request)
            except ManyRefused:
                parts = range(0, len(request), SEARCHED_VALUES)
                found = [row for at in parts for row in mirror.log(request[at : at + SEARCHED_VALUES])]
            for row in found:
                metric, _, why = row.detail.partition(": ")
                notes.add(metric, f"is refused by MLflow: {why}")
            refused += len(found)
            sent += len(request)
        return refused

    def _read_back(self, run_id: str, name: str) -> set[_Place]:
        """Return all points that the MLflow run has."""
        found: set[_Place] = set()
        run = get_run(self._api, run_id)
        names = sorted(run.metrics) if run is not None else []
        for number, metric in enumerate(names):
            for page in metric_pages(self._api, run_id, metric):
                self._on_progress(f"{name}, read back", len(found), number / len(names))
                found.update(_place(metric, point.step, point.ts_ms, point.value) for point in page)
        return found


def _place(name: str, step: int, ts_ms: int, value: float | str) -> _Place:
    number = float(value)
    if math.isinf(number):
        number = math.copysign(sys.float_info.max, number)
    return name, step, ts_ms, "NaN" if math.isnan(number) else number


def _rows(connection: Connection, job_id: int) -> Iterator[MetricRow]:
    seq = 0
    while page := read_rows(connection, {job_id: seq}, _PAGE_ROWS, _PAGE_BYTES)[job_id]:
        yield from page
        seq = page[-1].seq


def _attempts(connection: Connection, job_id: int, created_at: datetime) -> dict[int, AttemptState]:
    table = training_attempts.c
    wanted = select(*(table[name] for name in _READ)).where(table.job_id == job_id)
    return {row["attempt"]: _attempt(created_at, **row) for row in connection.execute(wanted).mappings()}


def _attempt(created_at: datetime, **fields: Any) -> AttemptState:
    return AttemptState(job_created_at=created_at, changes=1, is_settled=True, **fields)


def _with_tags(attempt: AttemptState, more: Mapping[str, str]) -> AttemptState:
    return replace(attempt, tags={**(attempt.tags or {}), **more})


def _links(checkpoints: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return MLflow tags (name -> URI) that link the newest checkpoints, at most MOST_CHECKPOINTS."""
    tags: dict[str, str] = {}
    for row in checkpoints:
        counts = (("epoch", row["epoch"]), ("step", row["step"]))
        name = "-".join([row["kind"], *(f"{word}{count}" for word, count in counts if count is not None)])
        tags.pop(f"checkpoint/{name}", None)
        tags[f"checkpoint/{name}"] = row["uri"]
    return dict(list(tags.items())[-MOST_CHECKPOINTS:])


def _linked(checkpoints: Collection[Any], links: Mapping[str, str], run: MlflowRun) -> Count:
    state = _attempt(datetime.min, attempt=0, status="lost", tags=links)  # the time is not used
    tags = tags_of(state, Notes())
    stored = sum(run.tags.get(name) == value for name, value in tags.items())
    return _count(len(checkpoints), stored, {SUPERSEDED: len(checkpoints) - len(links)})


def _texts(
    source: Mapping[str, Any] | None, wanted: Mapping[str, str], found: Mapping[str, str], notes: Notes, kind: str
) -> Count:
    lacking = wanted.keys() - found
    refused = sum(" refused by MLflow" in notes.texts.get(f"{kind} {name}", "") for name in lacking)
    skipped = {f"more than {MOST_OF_AN_ATTEMPT:,}": len(source or {}) - len(wanted), REFUSED: refused}
    return _count(len(source or {}), len(wanted) - len(lacking), skipped)


def _count(source: int, stored: int, skipped: Mapping[str, int]) -> Count:
    reasons = {reason: number for reason, number in Counter(skipped).items() if number > 0}
    return Count(source=source, stored=stored, skipped=reasons, missing=source - stored - sum(reasons.values()))
