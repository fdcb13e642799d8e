"""`trainwire export`: writes jobs to files, or copies them to an MLflow server."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Final, TextIO

import typer
from sqlalchemy import Connection

from trainwire.cli.commands.options import DataDir, Quiet, servers, write_json
from trainwire.cli.job_references import job_id_of, known_job
from trainwire.cli.terminal import one_line, say, warn
from trainwire.cli.transfer.exports.exported_jobs import ExportedJob
from trainwire.cli.transfer.exports.mlflow_export import MlflowExport, MlflowExportReport
from trainwire.cli.transfer.exports.parquet_export import write_parquet
from trainwire.cli.transfer.exports.text_formats import write_csv, write_jsonl
from trainwire.cli.transfer.progress import Progress
from trainwire.cli.transfer.readers.mlflow_runs import mlflow_api
from trainwire.stack.database import reading
from trainwire.stack.errors import Problem, as_problem
from trainwire.stores.mlflow.http import MlflowRefused, MlflowUnavailable
from trainwire.stores.postgres.jobs.job_lookup import removed_rows

TEXT_FORMATS: Final = {"csv": write_csv, "jsonl": write_jsonl}
FILE_FORMATS: Final = (*TEXT_FORMATS, "parquet")
FORMATS: Final = (*FILE_FORMATS, "mlflow")
DEFAULT_EXPERIMENT: Final = "trainwire"


def export(
    jobs: Annotated[
        list[str],
        typer.Argument(metavar="JOB...", help="Numbers or names, their beginnings, last digits, or `last`."),
    ],
    *,
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="csv, jsonl, parquet or mlflow.")
    ] = "csv",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="A folder, with a file for each job.")
    ] = None,
    project: Annotated[str, typer.Option(help="The project_id in parquet.")] = "trainwire",
    uri: Annotated[
        str | None, typer.Option("--to", metavar="URI", help="The MLflow server, like http://localhost:5000.")
    ] = None,
    experiment: Annotated[
        str, typer.Option(metavar="NAME", help="The experiment in MLflow.")
    ] = DEFAULT_EXPERIMENT,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report of an export to MLflow as JSON.")
    ] = False,
    quiet: Quiet = False,
    data_dir: DataDir = None,
) -> None:
    """Write jobs to files, or copy them to MLflow.

    CSV files have the metrics, parquet files also parameters, tags and log lines, and JSON lines also checkpoints.
    Without --output one job is written to stdout, as CSV or JSON lines. Parquet has the schema of
    neptune-exporter, and needs trainwire[parquet]. In MLflow, each attempt becomes a run; repeating the export
    adds nothing, and the report counts what was read back from MLflow.
    """
    if form not in FORMATS:
        raise Problem(f"no such format {form!r}: choose {', '.join(FORMATS)}")
    if (form in FILE_FORMATS) == (uri is not None):
        raise Problem("--format mlflow and --to URI go together: the address is that of an MLflow server")
    if uri is not None:
        if output is not None:
            raise Problem("--output is for files: leave it out with --format mlflow")
        _export_to_mlflow(jobs, uri, experiment, data_dir, as_json=as_json, quiet=quiet)
        return
    if output is None and (form == "parquet" or len(jobs) > 1):
        raise Problem("several jobs, and parquet, are written to a folder: name it with --output DIR")
    _export_to_files(jobs, form, output, project, data_dir, quiet=quiet)


def _export_to_files(
    jobs: Sequence[str], form: str, output: Path | None, project: str, data_dir: Path | None, *, quiet: bool
) -> None:
    """Write each job to a file in the folder `output`, or to stdout if it is None."""
    is_shown = output is not None or not sys.stdout.isatty()
    with reading(servers(data_dir)) as connection, Progress(quiet=quiet or not is_shown) as progress:
        for exported in _jobs(connection, jobs):
            number = exported.job.id
            exported.on_page = partial(_show, progress, exported)
            if output is None:
                TEXT_FORMATS[form](exported, sys.stdout)
                where = "stdout"
            else:
                where = str(_write(exported, form, output, project))
            warn(
                f"job {number} {one_line(exported.job.name or '')}: {exported.points:,} points, "
                f"{exported.lines:,} lines, {exported.checkpoints:,} checkpoints to {where}"
            )
            _warn_of_removed(connection, number)


def _jobs(connection: Connection, references: Sequence[str]) -> Iterator[ExportedJob]:
    for number in dict.fromkeys([job_id_of(connection, reference) for reference in references]):
        yield ExportedJob(connection, known_job(connection, number))


def _show(progress: Progress, exported: ExportedJob) -> None:
    job = exported.job
    share = exported.rows / max(job.last_metric_seq + job.last_log_seq, 1)
    progress.update(f"job {job.id} {job.name or ''}", exported.points, share)


def _warn_of_removed(connection: Connection, number: int) -> None:
    for kind, last in removed_rows(connection, number).items():
        if last:
            warn(f"{kind} 1 to {last:,} of job {number} were removed by retention")


def _export_to_mlflow(
    jobs: Sequence[str], uri: str, experiment: str, data_dir: Path | None, *, as_json: bool, quiet: bool
) -> None:
    """Copy jobs to MLflow, and print the counts read back from it; exit with code 1 if something is missing."""
    api = mlflow_api(uri)
    report = MlflowExportReport()
    hint = f"; the address is {uri}; export again when it answers: it continues where it ended"
    with (
        reading(servers(data_dir)) as connection,
        Progress(quiet=quiet) as progress,
        as_problem(MlflowUnavailable, MlflowRefused, hint=hint),
    ):
        target = MlflowExport(api, experiment, progress.update)
        for exported in _jobs(connection, jobs):
            for run in target.export(exported):
                report.add(run)
            report.leave_out_lines(exported.job.last_log_seq)
            _warn_of_removed(connection, exported.job.id)
    if as_json:
        write_json(report)
    else:
        _print(report)
    if not report.complete:
        raise typer.Exit(1)


def _print(report: MlflowExportReport) -> None:
    for run in report.runs:
        news = f"{run.sent:,} points sent" if run.sent else "nothing new"
        say(f"run {run.run_id}  job {run.job_id} attempt {run.attempt} {one_line(run.name)}: {news}")
        for name, note in run.notes.items():
            warn(one_line(f"job {run.job_id} attempt {run.attempt}: {name} {note}"))
    for kind in ("points", "params", "tags", "checkpoints", "lines"):
        say(getattr(report, kind).line(kind))


def _write(exported: ExportedJob, form: str, folder: Path, project: str) -> Path:
    """Write a job to a file in `folder`, and return its path; an existing file is replaced.

    On an error, no partial file is left. Raises `Problem` if the file cannot be written.
    """
    try:
        if form == "parquet":
            folder = folder / re.sub(r"[^\w.-]", "_", project)
        path = folder / (f"{exported.job.id}_part_0.parquet" if form == "parquet" else f"{exported.job.id}.{form}")
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            if form == "parquet":
                write_parquet(exported, part, project)
            else:
                with _created(part) as file:
                    TEXT_FORMATS[form](exported, file)
            part.replace(path)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)
    except OSError as exc:
        raise Problem(f"cannot write to {folder}: {exc.strerror or exc}") from exc
    return path


def _created(path: Path) -> TextIO:
    return path.open("w", encoding="utf-8", newline="")
