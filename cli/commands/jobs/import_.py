"""`trainwire import`: imports runs of other tools as jobs, and compares the counts of both sides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Final

import typer
from sqlalchemy import Connection

from trainwire.cli.commands.options import AsJson, DataDir, Quiet, servers, write_json
from trainwire.cli.redis_clients import stream_client
from trainwire.cli.terminal import one_line, say, warn
from trainwire.cli.transfer.import_report import ImportReport
from trainwire.cli.transfer.importing import import_runs
from trainwire.cli.transfer.progress import Progress
from trainwire.cli.transfer.readers.csv_file import csv_run
from trainwire.cli.transfer.readers.parquet_import import parquet_runs
from trainwire.cli.transfer.readers.tensorboard import tensorboard_runs
from trainwire.cli.transfer.readers.wandb_runs import wandb_runs
from trainwire.cli.transfer.runs import COUNTED, LeftOut, SourceRun
from trainwire.cli.transfer.sending import AGAIN, Sender
from trainwire.stack.database import reading, settings_for
from trainwire.stack.errors import as_problem
from trainwire.stores.mlflow.http import MlflowRefused, MlflowUnavailable
from trainwire.stores.postgres.jobs.job_lookup import is_known

MOST_LISTED: Final = 50

app = typer.Typer(
    no_args_is_help=True,
    help="Import runs of other tools, each as a job, and print a report. A second import adds nothing.",
)
Verify = Annotated[bool, typer.Option("--verify", help="Send nothing: compare the source with Postgres.")]
Copy = Annotated[
    str, typer.Option("--copy", metavar="TEXT", help="Import once more, as other jobs: one for each TEXT.")
]
Name = Annotated[str | None, typer.Option("--name", help="The job's name.")]
Runs = Iterable[SourceRun | LeftOut]


@app.command("csv")
def csv(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The metrics of one run.")],
    *,
    name: Name = None,
    copy: Copy = "",
    verify: Verify = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    data_dir: DataDir = None,
) -> None:
    """Import one job from a CSV file.

    The file has a column for each metric, or the columns `name` and `value`. It also needs at least one of the
    columns `step`, `epoch` and `time`. Times are ISO 8601 or seconds since 1970.
    """
    run = csv_run(file, name, copy)
    _import(lambda _: [run], data_dir, verify=verify, as_json=as_json, quiet=quiet)


@app.command("tensorboard")
def tensorboard(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that `tensorboard --logdir` gets.")],
    *,
    name: Name = None,
    copy: Copy = "",
    verify: Verify = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    data_dir: DataDir = None,
) -> None:
    """Import runs from TensorBoard event files: scalars, hyperparameters and texts."""
    _import(lambda _: tensorboard_runs(folder, name, copy), data_dir, verify=verify, as_json=as_json, quiet=quiet)


@app.command("wandb")
def wandb(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A training's folder `wandb`, or one file *.wandb.")],
    *,
    name: Name = None,
    copy: Copy = "",
    verify: Verify = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    data_dir: DataDir = None,
) -> None:
    """Import W&B runs, offline and synced ones, from their files: history, config, output and system metrics.

    Needs neither W&B nor an account.
    """
    _import(lambda _: wandb_runs(path, name, copy), data_dir, verify=verify, as_json=as_json, quiet=quiet)


@app.command("parquet")
def parquet(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of parquet files, or one file.")],
    *,
    copy: Copy = "",
    verify: Verify = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    data_dir: DataDir = None,
) -> None:
    """Import runs from parquet files in the schema of neptune-exporter: metrics, parameters, tags and texts.

    Needs trainwire[parquet].
    """
    _import(lambda _: parquet_runs(path, copy), data_dir, verify=verify, as_json=as_json, quiet=quiet)


@app.command("mlflow")
def mlflow(
    uri: Annotated[str, typer.Argument(metavar="URI", help="The server's address, like http://localhost:5000.")],
    *,
    experiment: Annotated[
        list[str] | None, typer.Option("--experiment", metavar="NAME", help="Only this one; may be repeated.")
    ] = None,
    copy: Copy = "",
    verify: Verify = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    data_dir: DataDir = None,
) -> None:
    """Import runs from an MLflow server: metrics with their whole history, parameters, tags and final states.

    Credentials are read from MLFLOW_TRACKING_USERNAME and the other variables of MLflow's client.
    """
    from trainwire.cli.transfer.readers.mlflow_runs import MlflowRuns, mlflow_api  # noqa: PLC0415 - imports requests

    api = mlflow_api(uri)
    own = settings_for(servers(data_dir)).mlflow_tracking_uri

    def runs(connection: Connection) -> Iterator[SourceRun | LeftOut]:
        is_own = own is not None and own.rstrip("/") == uri.rstrip("/")
        source = MlflowRuns(
            api, copy, is_mirrored_to=is_own, knows_job=lambda job_id: is_known(connection, job_id)
        )
        yield from source.runs(experiment or ())

    with as_problem(MlflowUnavailable, MlflowRefused, hint=f"; URI is {uri}; when it answers, {AGAIN}"):
        _import(runs, data_dir, verify=verify, as_json=as_json, quiet=quiet)


def _import(
    runs_of: Callable[[Connection], Runs], data_dir: Path | None, *, verify: bool, as_json: bool, quiet: bool
) -> None:
    """Import the runs, and print the counts of both sides; exit with code 1 if Postgres lacks something."""
    address = servers(data_dir)
    with ExitStack() as stack:
        connection = stack.enter_context(reading(address))
        sender = None
        if not verify:
            client = stack.enter_context(stream_client(settings_for(address, with_redis=True)))
            sender = Sender(client, connection)
        progress = stack.enter_context(Progress(quiet=quiet))
        report = import_runs(runs_of(connection), connection, sender, progress.update)
    if as_json:
        write_json(report)
    else:
        _print(report)
    if not report.complete:
        raise typer.Exit(1)


def _print(report: ImportReport) -> None:
    for run in report.imported[:MOST_LISTED]:
        news = f"{run.sent:,} messages sent" if run.sent else "nothing new"
        say(f"job {run.job_id}  {one_line(run.name)}: {run.points.stored:,} points, {news}")
    if len(report.imported) > MOST_LISTED:
        say(f"and {len(report.imported) - MOST_LISTED:,} more: see --json")
    for run in report.imported:
        for note in run.notes:
            warn(one_line(f"{run.name}: {note}"))
        for problem in run.problems:
            warn(one_line(problem))
    for left in sorted(report.left_out, key=lambda left: not left.is_failure)[:MOST_LISTED]:
        warn(one_line(f"{left.name}: {left.reason}; it is not imported"))
    if len(report.left_out) > MOST_LISTED:
        warn(f"and {len(report.left_out) - MOST_LISTED:,} more are not imported: see --json")
    for kind in ("runs", *COUNTED):
        say(getattr(report, kind).line(kind))
    if any(run.missing for run in report.imported):
        lost = next(run for run in report.imported if run.missing)
        warn(
            f"not everything is stored, first of job {lost.job_id}: see `trainwire dead-letters list`; or the "
            "source has changed since its import: import it with --copy TEXT as another job, and delete this one"
        )
