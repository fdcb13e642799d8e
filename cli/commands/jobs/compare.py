"""`trainwire compare`: compares the parameters and metrics of jobs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from trainwire.cli.commands.options import AsJson, DataDir, JobReferences, servers, write_json
from trainwire.cli.comparison import MOST_JOBS, differs, final_metrics, flat, side_by_side
from trainwire.cli.formats import shown_number
from trainwire.cli.gateway_jobs import gateway_jobs
from trainwire.cli.job_references import named_job
from trainwire.cli.terminal import print_table
from trainwire.client.client import Client
from trainwire.client.errors import ClientError
from trainwire.client.records import JobInfo
from trainwire.stack.database import reading
from trainwire.stack.errors import Problem, as_problem


def compare(
    jobs: JobReferences,
    every: Annotated[bool, typer.Option("--all", help="Also parameters that are equal.")] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Print the parameters in which jobs differ, and the final and best values of their metrics."""
    if not 2 <= len(jobs) <= MOST_JOBS:
        raise Problem(f"{len(jobs)} jobs: name 2 to {MOST_JOBS} jobs to compare")
    with _reader(data_dir, jobs) as (client, references):
        found = [client.job(reference) for reference in references]
    documents = [_compared(job.info) for job in found]
    values = side_by_side(documents)
    names = [name for name in values if every or not name.startswith("params.") or differs(values[name])]
    if as_json:
        shown = [{name: document.get(name) for name in names} for document in documents]
        write_json([{"id": job.id, **document} for job, document in zip(found, shown, strict=True)])
        return
    rows = [[name, *(_shown(document.get(name)) for document in documents)] for name in names]
    print_table(["", *(str(job.id) for job in found)], rows)


@contextmanager
def _reader(data_dir: Path | None, jobs: list[str]) -> Iterator[tuple[Client, list[int]]]:
    """Yield a client that reads from the gateway or from Postgres, and the numbers of the jobs named in `jobs`."""
    with gateway_jobs(data_dir) as remote:
        if remote is not None:
            yield remote.client, [remote.job(job).id for job in jobs]
            return
    address = servers(data_dir)
    with reading(address) as connection:
        ids = [named_job(connection, job).id for job in jobs]
    with as_problem(ClientError), Client(database_url=address.need_database_url()) as client:
        yield client, ids


def _compared(job: JobInfo) -> dict[str, Any]:
    return (
        {"name": job.name, "status": job.status}
        | {f"params.{name}": value for name, value in flat(job.params or {}).items()}
        | {f"metrics.{name}": value for name, value in final_metrics(job).items()}
        | {f"metrics.{name}.best": value for name, value in (job.best_metrics or {}).items()}
    )


def _shown(value: object) -> object:
    return None if value is None or value == "" else shown_number(value)
