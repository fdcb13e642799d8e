"""`trainwire metrics`: prints the newest metric points of a job, or all points as CSV."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from typing import Annotated, Final

import typer

from trainwire.cli.commands.options import AsJson, DataDir, JobReference, servers, write_json
from trainwire.cli.formats import shown_number
from trainwire.cli.gateway_jobs import gateway_jobs
from trainwire.cli.gateway_reads import GatewayReads
from trainwire.cli.job_references import named_job
from trainwire.cli.numbers import MOST_SHOWN, whole_option
from trainwire.cli.terminal import cell, one_line, print_table, say, warn
from trainwire.client.client import Client
from trainwire.client.errors import ClientError
from trainwire.client.metrics import Metrics
from trainwire.schemas.lifted_metrics import COLUMN_OF
from trainwire.schemas.metric_download import split_names
from trainwire.schemas.non_finite import shown_float, shown_value
from trainwire.schemas.tables import LIFTED
from trainwire.schemas.times import to_datetime
from trainwire.schemas.wire.messages import FINISHED
from trainwire.stack.database import reading
from trainwire.stack.errors import Problem, as_problem
from trainwire.stack.locate import Address
from trainwire.stores.postgres.jobs.job_lookup import Job, removed_rows
from trainwire.stores.rows.command_rows import StoredPoint, newest_metrics

SHOWN_EXTRAS = 12
"""Largest number of metrics in the table besides loss, accuracy and learning rate; --json prints all."""
DEFAULT_LIMIT: Final = 500


def metrics(
    job: JobReference,
    *,
    as_json: AsJson = False,
    names: Annotated[
        str, typer.Option(metavar="NAME,...", help=r"Only these metrics; a comma in a name is \,")
    ] = "",
    as_csv: Annotated[bool, typer.Option("--csv", help="Print all points as CSV, one line for each.")] = False,
    limit: Annotated[
        int, whole_option(1, MOST_SHOWN, "Number of newest points; --csv prints all.")
    ] = DEFAULT_LIMIT,
    data_dir: DataDir = None,
) -> None:
    """Print a job's newest metric points, oldest first, or all points as CSV."""
    wanted = split_names([names])
    if as_csv and (as_json or limit != DEFAULT_LIMIT):
        raise Problem("--csv prints all points: leave out --json and --limit")
    rows_wanted = 0 if as_csv or wanted else limit
    with gateway_jobs(data_dir) as remote:
        if remote is not None:
            reads, job_id = GatewayReads(remote), remote.job(job).id
            report = reads.report(job_id)
            found_job, removed = report.job, report.removed_rows["metrics"]
            rows = reads.newest_points(job_id, rows_wanted)
            found = None if rows_wanted else _all_points(remote.client, job_id, wanted)
    if remote is None:
        address = servers(data_dir)
        with reading(address) as connection:
            found_job = named_job(connection, job)
            job_id = found_job.id
            removed = removed_rows(connection, job_id)["metrics"]
            rows = newest_metrics(connection, job_id, rows_wanted) if rows_wanted else []
        found = None if rows_wanted else _stored_points(address, job_id, wanted)
    if found is not None and not as_csv:
        rows = _newest(found, limit)
    if found is not None and as_csv:
        _write_csv(found)
    elif as_json:
        write_json(rows)
    elif rows:
        _show_table(rows)
    elif not removed:
        say(f"job {job_id} has none of these metrics" if wanted else _absence(found_job))
    if removed and (as_csv or len(rows) < limit):
        warn(f"points 1 to {removed:,} of job {job_id} were removed by retention")


def _absence(job: Job) -> str:
    if job.status not in FINISHED:
        return f"no metrics of job {job.id} yet"
    return (
        f"job {job.id} logged no metrics: for a training that prints them see `trainwire run --metrics-regex` "
        "(docs/hooks.md)"
    )


def _stored_points(address: Address, job_id: int, names: Sequence[str]) -> Metrics:
    with as_problem(ClientError), Client(database_url=address.need_database_url()) as client:
        return _all_points(client, job_id, names)


def _all_points(client: Client, job_id: int, names: Sequence[str]) -> Metrics:
    """Return all points of the metrics `names`; print a warning for each name that the job does not have."""
    found = client.job(job_id).metrics(list(names))
    for name in names:
        if name not in found and COLUMN_OF.get(name) not in found:
            warn(f"job {job_id} has no metric {one_line(name)!r}")
    return found


def _newest(found: Metrics, limit: int) -> list[StoredPoint]:
    """Return the last `limit` rows of `found` as points."""
    columns = {name: column[-limit:] for name, column in found.columns.items()}
    about = [columns.pop(name) for name in ("seq", "attempt", "rank", "epoch", "step", "ts")]
    return [
        StoredPoint(
            seq=seq,
            attempt=attempt,
            rank=rank,
            epoch=epoch,
            step=step,
            logged_at=to_datetime(ts),
            checkpoint_path=None,
            values={name: shown_float(values[at]) for name, values in columns.items() if values[at] is not None},
        )
        for at, (seq, attempt, rank, epoch, step, ts) in enumerate(zip(*about, strict=True))
    ]


def _write_csv(found: Metrics) -> None:
    """Write one CSV line per point; times are nanoseconds since 1970, and a missing value is an empty cell."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(found.columns)
    writer.writerows(zip(*(map(shown_value, column) for column in found.columns.values()), strict=True))


def _show_table(rows: list[StoredPoint]) -> None:
    extras = list(dict.fromkeys(name for row in rows for name in row.values if name not in LIFTED))
    names = [*LIFTED, *extras[:SHOWN_EXTRAS]]
    headers = [cell(name) for name in names]
    shown = ((row.epoch, row.step, *(shown_number(row.values.get(name, "")) for name in names)) for row in rows)
    print_table(("epoch", "step", *headers), shown, right={str(header) for header in headers})
    if len(extras) > SHOWN_EXTRAS:
        say(f"and {len(extras) - SHOWN_EXTRAS} more metrics: see --json")
