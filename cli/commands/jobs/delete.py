"""`trainwire delete`: deletes a job and its data in all stores."""

from __future__ import annotations

import inspect
import socket
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer
from sqlalchemy import Engine

from trainwire.cli.commands.jobs.deletion_lines import deletion_lines, part_line, plan_lines
from trainwire.cli.commands.options import AsJson, DataDir, JobReference, servers, write_json
from trainwire.cli.gateway_jobs import gateway_jobs
from trainwire.cli.job_references import job_id_of
from trainwire.cli.redis_clients import redis_clients, stream_client
from trainwire.cli.terminal import safe, say, warn
from trainwire.schemas.migrations import check_revision
from trainwire.schemas.sinks import SINKS
from trainwire.schemas.streams.clients import STREAM_ERRORS
from trainwire.schemas.streams.tls import redis_trouble
from trainwire.stack.database import open_database, settings_for
from trainwire.stack.errors import Problem, as_problem
from trainwire.stores.files.s3 import open_s3
from trainwire.stores.local_user import local_user
from trainwire.stores.postgres.deletion import (
    Choice,
    Deletion,
    NoSuchJob,
    StillAtWork,
    StillDeleting,
    find_deletion,
    forget_acks,
    forget_deletion,
    plan_or_deletion,
    start_deletion,
)
from trainwire.stores.postgres.deletion_plan import DeletionPlan
from trainwire.workers.errors import Unavailable
from trainwire.workers.operations.job_deletion import JobDeleter
from trainwire.workers.resources import Resources
from trainwire.workers.settings import Settings

EXIT_LEFT: Final = 1
PROGRESS_EVERY_S: Final = 5.0
WORKER_POLL_S: Final = 0.5


def _with_keep_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with one flag `--keep-<sink>` for each sink in place of its parameter `keep`."""

    def run(**given: Any) -> None:
        kept = frozenset(sink for sink in SINKS if given.pop(f"keep_{sink}"))
        command(**given, keep=kept)

    shown = inspect.signature(command, eval_str=True)
    parameters = {name: parameter for name, parameter in shown.parameters.items() if name != "keep"}
    for sink in SINKS.values():
        option = typer.Option(f"--keep-{sink.name}", help=f"Keep its {sink.copies} in {sink.title}.")
        parameters[f"keep_{sink.name}"] = inspect.Parameter(
            f"keep_{sink.name}", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option]
        )
    run.__signature__ = shown.replace(parameters=list(parameters.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
    run.__doc__ = command.__doc__
    return run


@_with_keep_flags
def delete(
    job: JobReference,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the data, and delete nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Delete the job even if it has not ended.")] = False,
    with_files: Annotated[bool, typer.Option("--with-files", help="Also its checkpoint files in S3.")] = False,
    keep: frozenset[str],
    reason: Annotated[str | None, typer.Option(help="Reason, kept with the deletion.")] = None,
    forget: Annotated[
        bool, typer.Option("--forget", help="Allow the number of a deleted job to be used again.")
    ] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Delete a job from all stores; messages that its trainers send later are discarded.

    Lists the data and asks for confirmation first. Exit code 1 if data is left: repeat the command to continue.
    """
    choice = Choice(with_files=with_files, keep=keep)
    # Without a confirmation, an abbreviation could match another job than the intended one.
    may_abbreviate = dry_run or not yes

    def is_confirmed(job_id: int, found: DeletionPlan | Deletion, where: str = "") -> bool:
        _show_plan(found, choice, as_json=as_json, is_dry_run=dry_run)
        if not (dry_run or yes):
            _ask(job_id, where)
        return not dry_run

    with gateway_jobs(data_dir) as remote:
        if remote is not None:
            job_id = remote.number_of(job, may_abbreviate=may_abbreviate)
            if forget:
                remote.forget(job_id)
                _say_forgotten(job_id)
            elif is_confirmed(job_id, remote.plan_or_deletion(job_id), f" of {remote.url}"):
                progress = _progress(is_quiet=as_json)
                done = remote.delete(job_id, choice, reason, force=force, on_progress=progress)
                _report(done, as_json=as_json, is_by_workers=True)
            return
    settings = settings_for(servers(data_dir), with_redis=True)
    with open_database(settings) as engine:
        with engine.connect() as connection:
            check_revision(connection)
            job_id = job_id_of(connection, job, may_abbreviate=may_abbreviate)
        if forget:
            _forget(engine, settings, job_id)
        elif is_confirmed(job_id, _plan(engine, job_id)):
            done = _delete(engine, settings, job_id, choice, reason, force=force, is_quiet=as_json)
            _report(done, as_json=as_json)


def _plan(engine: Engine, job_id: int) -> DeletionPlan | Deletion:
    with as_problem(NoSuchJob, hint=": `trainwire jobs` lists all jobs"), engine.begin() as connection:
        return plan_or_deletion(connection, job_id)


def _show_plan(found: DeletionPlan | Deletion, choice: Choice, *, as_json: bool, is_dry_run: bool) -> None:
    """Print the plan to delete a job, or the progress of its deletion."""
    if as_json and is_dry_run:
        write_json(found)
    if as_json:
        return
    for line in plan_lines(found, choice) if isinstance(found, DeletionPlan) else deletion_lines(found):
        (say if is_dry_run else _to_stderr)(safe(line))


def _to_stderr(line: str) -> None:
    """Write one line to stderr; stdout is reserved for the result."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _ask(job_id: int, where: str = "") -> None:
    if not sys.stdin.isatty():
        raise Problem(f"nothing is deleted: confirm the deletion of job {job_id} with --yes")
    typer.confirm(f"Delete job {job_id}{where} permanently?", abort=True, err=True)


def _delete(
    engine: Engine,
    settings: Settings,
    job_id: int,
    choice: Choice,
    reason: str | None,
    *,
    force: bool,
    is_quiet: bool,
) -> Deletion:
    by = f"{local_user()}@{socket.gethostname()}, trainwire delete"
    with (
        as_problem(NoSuchJob),
        as_problem(StillAtWork, hint=": --force"),
        as_problem(Unavailable, hint=": the workers continue the deletion, or repeat the command"),
        redis_clients(settings) as (client, streams),
    ):
        begun = start_deletion(
            engine, client, job_id, choice, by=by, reason=reason, force=force, on_unpublished=_warn_of_delay
        )
        deleter = JobDeleter(Resources(settings, engine, client, streams), open_s3, is_worker=False)
        return _run(engine, deleter, begun, _progress(is_quiet=is_quiet))


def _run(
    engine: Engine, deleter: JobDeleter, begun: Deletion, on_progress: Callable[[Deletion], None]
) -> Deletion:
    """Execute the deletion until it is finished, or until a store fails and must be retried later.

    Returns the progress. If a worker executes the same deletion, this process waits for that worker.
    """
    known = begun
    while not known.is_finished:
        attempts = known.attempts
        has_run = deleter.run(begun.job_id, on_progress=on_progress)
        with engine.begin() as connection:
            known = find_deletion(connection, begun.job_id) or known
        if has_run and known.attempts > attempts:
            return known
        if not has_run:
            on_progress(known)
            time.sleep(WORKER_POLL_S)
    return known


def _warn_of_delay(reason: str) -> None:
    warn(f"open pages show the deletion later: {reason}")


def _progress(*, is_quiet: bool) -> Callable[[Deletion], None]:
    shown_at = time.monotonic()

    def show(deletion: Deletion) -> None:
        nonlocal shown_at
        if not is_quiet and time.monotonic() - shown_at >= PROGRESS_EVERY_S:
            shown_at = time.monotonic()
            parts = deletion.parts.items()
            going = [part_line(name, part) for name, part in parts if part.state == "open" and part.deleted]
            _to_stderr(" · ".join(going) or "deleting")

    return show


def _forget(engine: Engine, settings: Settings, job_id: int) -> None:
    with as_problem(NoSuchJob, StillDeleting), engine.begin() as connection:
        forget_deletion(connection, job_id)
        # Before the commit: otherwise an error left the mark there for a week, and no repetition removed it.
        try:
            with stream_client(settings) as client:
                forget_acks(client, job_id)
        except STREAM_ERRORS as exc:
            reason = f"its mark in Redis cannot be removed: {redis_trouble(exc)}"
            raise Problem(f"job {job_id} stays deleted, try again: {reason}") from exc
    _say_forgotten(job_id)


def _say_forgotten(job_id: int) -> None:
    say(f"the number {job_id} can be used again: new messages of it are stored")


def _report(done: Deletion, *, as_json: bool, is_by_workers: bool = False) -> None:
    """Print the result of the deletion; exit with code 1 if data is left."""
    if as_json:
        write_json(done)
    else:
        _show_outcome(done, is_by_workers=is_by_workers)
    if not done.is_complete:
        raise typer.Exit(EXIT_LEFT)


def _show_outcome(done: Deletion, *, is_by_workers: bool) -> None:
    say(f"job {done.job_id} is deleted" if done.is_complete else f"job {done.job_id} is deleted in part")
    for name, part in done.parts.items():
        say(f"  {part_line(name, part)}")
    if not done.is_finished:
        at_once = "" if is_by_workers else f"; `trainwire delete {done.job_id}` does so at once"
        say(f"the workers continue with the rest{at_once}")
    elif not done.is_complete:
        say(f"remove the cause, then repeat `trainwire delete {done.job_id}` with the same options")
        for name, sink in SINKS.items():
            if name in done.parts and done.parts[name].state == "left":
                say(f"or leave the copies in {sink.title} there: add --keep-{name}")
