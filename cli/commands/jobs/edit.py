"""`trainwire rename`, `note`, `tag` and `archive`: change a job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainwire.cli.commands.options import DataDir, JobReference, JobReferences, servers
from trainwire.cli.gateway_jobs import gateway_jobs
from trainwire.cli.job_references import job_to_change, named_job
from trainwire.cli.terminal import one_line, say
from trainwire.stack.database import writing
from trainwire.stack.errors import Problem, as_problem
from trainwire.stores.postgres.jobs.job_edits import JobEdit, save_edit
from trainwire.stores.postgres.jobs.user_texts import WrongText


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
    jobs: JobReferences,
    undo: Annotated[bool, typer.Option("--undo", help="Show the jobs in lists again.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Hide jobs in lists; none of their data is deleted. `trainwire jobs --archived` shows them."""
    for job in jobs:
        job_id = _edit(data_dir, job, JobEdit(archived=not undo))
        say(f"job {job_id} is {'in lists again' if undo else 'archived'}")


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
