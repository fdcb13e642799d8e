"""`trainwire rename`, `note`, `tag` and `archive` change a job; `compare` and `open` show jobs."""

from __future__ import annotations

import os
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from trainwire.cli.commands.options import AsJson, DataDir, JobReference, servers, write_json
from trainwire.cli.comparison import MOST_JOBS, differs, final_metrics, flat, side_by_side
from trainwire.cli.formats import shown_number
from trainwire.cli.gateway_jobs import gateway_jobs
from trainwire.cli.job_references import job_to_change, named_job
from trainwire.cli.terminal import one_line, print_table, say
from trainwire.client.client import Client
from trainwire.client.errors import ClientError
from trainwire.client.records import JobInfo
from trainwire.ingest.settings.variables import URL_VARIABLE
from trainwire.schemas.gateway_urls import base_of
from trainwire.stack.database import reading, writing
from trainwire.stack.errors import Problem, as_problem
from trainwire.stores.postgres.jobs.job_edits import JobEdit, save_edit
from trainwire.stores.postgres.jobs.user_texts import WrongText

Jobs = Annotated[list[str], typer.Argument(metavar="JOB...", help="Numbers or names of jobs, or `last`.")]


def rename(
    job: JobReference,
    name: Annotated[str, typer.Argument(help="The new name; an empty one restores the trainer's.")],
    data_dir: DataDir = None,
) -> None:
    """Rename a job; messages that its trainer sends later do not change the name back."""
    job_id = _edit(data_dir, job, JobEdit(name=name))
    say(
        f"job {job_id} is named {one_line(name)!r}"
        if name.strip()
        else f"job {job_id} has its trainer's name again"
    )


def note(
    job: JobReference,
    text: Annotated[str, typer.Argument(help="The note; an empty one deletes it.")],
    data_dir: DataDir = None,
) -> None:
    """Set the note of a job; a previous note is replaced."""
    job_id = _edit(data_dir, job, JobEdit(note=text))
    say(f"job {job_id} has the note {one_line(text)!r}" if text.strip() else f"job {job_id} has no note")


def tag(
    job: JobReference,
    tags: Annotated[list[str] | None, typer.Argument(metavar="NAME[=VALUE]...", help="Tags to set.")] = None,
    remove: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Remove a tag; repeatable.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Set and remove tags of a job; a tag without a value has the value `true`."""
    parts = [text.partition("=") for text in tags or ()]
    wanted: dict[str, str | None] = {name: value if mark else "true" for name, mark, value in parts}
    wanted |= dict.fromkeys(remove or [])
    if not wanted:
        raise Problem("no tags: write for example `trainwire tag 42 team=vision` or `--remove team`")
    job_id = _edit(data_dir, job, JobEdit(tags=wanted))
    shown = ", ".join(f"{name} removed" if value is None else f"{name}={value}" for name, value in wanted.items())
    say(f"job {job_id}: {one_line(shown)}")


def archive(
    jobs: Jobs,
    undo: Annotated[bool, typer.Option("--undo", help="Show the jobs in lists again.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Hide jobs in lists; none of their data is deleted. `trainwire jobs --archived` shows them."""
    for job in jobs:
        job_id = _edit(data_dir, job, JobEdit(archived=not undo))
        say(f"job {job_id} is {'in lists again' if undo else 'archived'}")


def compare(
    jobs: Jobs,
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


def open_page(
    jobs: Annotated[list[str] | None, typer.Argument(metavar="[JOB]...", help="Default: the list.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Print the address of a job's page, or of several jobs compared, and open it in a browser."""
    place = "#/"
    with gateway_jobs(data_dir) as remote:
        if remote is not None:
            gateway_url, ids = remote.url, [remote.job(job).id for job in jobs or ()]
    if remote is None:
        gateway_url, ids = _found_page(data_dir, jobs or [])
    if ids:
        first, *others = ids
        place = f"#/jobs/{first}" + (f"?compare={','.join(map(str, others))}" if others else "")
    url = f"{gateway_url.rstrip('/')}/{place}"
    say(url)
    webbrowser.open(url)


def _edit(data_dir: Path | None, reference: str, edit: JobEdit) -> int:
    """Change a job's name, note, tags or archived state, through the gateway or in Postgres; return its number."""
    with gateway_jobs(data_dir) as remote:
        if remote is not None:
            return remote.edit(reference, edit)
    with writing(servers(data_dir)) as connection:
        job_id = job_to_change(reference, named_job(connection, reference).id)
        with as_problem(WrongText):
            save_edit(connection, job_id, edit)
    return job_id


def _found_page(data_dir: Path | None, jobs: list[str]) -> tuple[str, list[int]]:
    """Return the URL of the gateway, and the numbers of the jobs that the references `jobs` name."""
    address = servers(data_dir)
    named = os.environ.get(URL_VARIABLE)
    gateway_url = address.gateway_url or (base_of(named) if named else None)
    if gateway_url is None:
        raise Problem("no gateway: start `trainwire up`, or set GATEWAY_URL")
    if not jobs:
        return gateway_url, []
    with reading(address) as connection:
        return gateway_url, [named_job(connection, job).id for job in jobs]


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
