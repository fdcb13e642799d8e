"""`trainwire stop`: requests the trainers of a job to stop."""

from __future__ import annotations

from typing import Annotated

import typer

from trainwire.cli.commands.options import AsJson, DataDir, JobReference, servers, write_json
from trainwire.cli.formats import shown_time
from trainwire.cli.gateway_jobs import gateway_jobs
from trainwire.cli.job_references import job_to_change, named_job
from trainwire.cli.terminal import one_line, say
from trainwire.client.records import StopInfo
from trainwire.stack.database import writing
from trainwire.stack.errors import as_problem
from trainwire.stores.local_user import local_user
from trainwire.stores.postgres.jobs.stop_requests import AlreadyEnded, StopRequested, UnknownJob, request_stop
from trainwire.stores.postgres.jobs.user_texts import WrongText


def stop(
    job: JobReference,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="The reason, which is stored and logged.")] = "",
    by: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who asks; default: the user of this command.")
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Request the trainers of a running job to stop; the job then ends with the status `stopped`.

    They receive the request within seconds, or when they can be reached again, and end by themselves: nothing is
    killed.
    """
    name = local_user() if by is None else by
    request: StopRequested | StopInfo
    with gateway_jobs(data_dir) as remote:
        if remote is not None:
            found = remote.job(job)
            job_to_change(job, found.id)
            request = found.stop(reason, by=name)
    if remote is None:
        errors = as_problem(AlreadyEnded, UnknownJob, WrongText)
        with writing(servers(data_dir)) as connection, errors:
            job_id = job_to_change(job, named_job(connection, job).id)
            request = request_stop(connection, job_id, name, reason)
    if as_json:
        write_json(request)
        return
    at, why = shown_time(request.requested_at), f": {request.reason}" if request.reason else ""
    job_and_attempt = f"job {request.job_id}, attempt {request.attempt}"
    say(one_line(f"{job_and_attempt}: {request.requested_by} asked it to stop {at}{why}"))
