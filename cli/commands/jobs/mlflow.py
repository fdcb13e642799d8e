"""`trainwire mlflow`: shows the MLflow run of a job."""

from __future__ import annotations

import os
from typing import Annotated, Any

from sqlalchemy import Connection

from trainwire.cli.commands.options import AsJson, DataDir, JobReference, plain, servers, write_json
from trainwire.cli.formats import shown_clock, shown_number, shown_time
from trainwire.cli.job_references import job_id_of, known_job
from trainwire.cli.numbers import MOST_SHOWN, whole_option
from trainwire.cli.terminal import one_line, print_table, say
from trainwire.schemas.wire.validation import MAX_ATTEMPT
from trainwire.stack.database import reading, settings_for
from trainwire.stack.errors import Problem, as_problem
from trainwire.stores.mlflow.http import MlflowApi, MlflowRefused, MlflowUnavailable, plain_send
from trainwire.stores.mlflow.runs import MlflowRun, RunSummary, get_run_summary, run_id_in_mlflow, run_url
from trainwire.stores.postgres.deliveries import JobDelivery, SinkHealth, job_deliveries, shown_delivery
from trainwire.stores.postgres.jobs.attempts import Attempt, find_attempts

COLUMNS = ("metric", "points", "last", "lowest", "highest")


def mlflow(
    job: JobReference,
    attempt: Annotated[
        int | None, whole_option(-MAX_ATTEMPT, MAX_ATTEMPT, "This attempt; default: the newest.")
    ] = None,
    limit: Annotated[int, whole_option(1, MOST_SHOWN, "Most metrics to show.")] = 50,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Show a job's MLflow run: state, summaries of metrics, values adapted to MLflow's limits, rows to deliver."""
    address = servers(data_dir)
    uri = settings_for(address).mlflow_tracking_uri
    if uri is None:
        raise Problem("MLFLOW_TRACKING_URI is not set: name the MLflow server, like http://localhost:5000")
    with reading(address) as connection:
        job_id = job_id_of(connection, job)
        wanted = known_job(connection, job_id).attempt if attempt is None else attempt
        known = _find_attempt(connection, job_id, wanted)
        delivery = job_deliveries(connection, job_id).get("mlflow")
    with as_problem(MlflowUnavailable, MlflowRefused, hint=f"; MLFLOW_TRACKING_URI is {uri}"):
        api = MlflowApi(plain_send(uri, os.environ))
        run_id = run_id_in_mlflow(api, job_id, known)
        found = None if run_id is None else get_run_summary(api, run_id, limit)
    if as_json:
        write_json(_document(job_id, known, delivery, found, uri))
        return
    for name, value in _lines(job_id, known, delivery, found, uri):
        say(f"{name:<16}{one_line(str(value))}")
    if found is not None and found.metrics:
        _show_metrics(found)


def _find_attempt(connection: Connection, job_id: int, attempt: int) -> Attempt:
    found = [row for row in find_attempts(connection, job_id) if row.attempt == attempt]
    if not found:
        raise Problem(f"job {job_id} has no attempt {attempt}: `trainwire status {job_id}` shows the newest")
    return found[0]


def _document(
    job_id: int,
    known: Attempt,
    delivery: tuple[JobDelivery, SinkHealth] | None,
    found: RunSummary | None,
    uri: str,
) -> dict[str, Any]:
    return {
        "job_id": job_id,
        **plain(known),
        "url": None if found is None else run_url(uri, found.run),
        "summary": found,
        "delivery": None if delivery is None else {**plain(delivery[0]), "sink": delivery[1]},
    }


def _lines(
    job_id: int,
    known: Attempt,
    delivery: tuple[JobDelivery, SinkHealth] | None,
    found: RunSummary | None,
    uri: str,
) -> list[tuple[str, object]]:
    lines: list[tuple[str, object]] = [("job", f"{job_id}, attempt {known.attempt}")]
    if found is None:
        lines.append(("run", f"{known.run_id} is not in MLflow" if known.run_id else "none in MLflow yet"))
    else:
        lines += _run_lines(found, uri)
    if known.mlflow_run_id is not None:
        lines.append(("mirror", "none: the trainer logs to this run itself"))
    elif delivery is not None:
        lines.append(("mirror", shown_delivery(*delivery, shown_clock)))
    notes = known.mirror_notes or {}
    return lines + [("adapted", f"{name!r} {change}") for name, change in notes.items()]


def _run_lines(found: RunSummary, uri: str) -> list[tuple[str, object]]:
    run = found.run
    lines = [
        ("run", f"{run.run_id} {run.name}, {_maker(run)}"),
        ("address", run_url(uri, run)),
        ("experiment", found.experiment),
        ("status", f"{run.status}, deleted" if run.is_deleted else run.status),
        ("started", shown_time(run.started_at)),
        ("ended", shown_time(run.ended_at)),
        ("params", len(run.params)),
        ("metrics", len(run.metrics)),
    ]
    return [(name, value) for name, value in lines if value is not None]


def _maker(run: MlflowRun) -> str:
    return "mirrored by trainwire" if run.is_mirror else "logged by the trainer"


def _show_metrics(found: RunSummary) -> None:
    rows = (
        (name, f"{metric.points:,}", *map(shown_number, (metric.last, metric.lowest, metric.highest)))
        for name, metric in found.metrics.items()
    )
    print_table(COLUMNS, rows, right=COLUMNS[1:])
    if found.more_metrics:
        say(f"and {found.more_metrics:,} more metrics: see --limit")
