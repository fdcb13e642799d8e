"""`trainwire open`: prints the address of a job's page, and opens it in a browser."""

from __future__ import annotations

import os
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from trainwire.cli.commands.options import DataDir, servers
from trainwire.cli.gateway_jobs import gateway_jobs
from trainwire.cli.job_references import named_job
from trainwire.cli.terminal import say
from trainwire.ingest.settings.variables import URL_VARIABLE
from trainwire.schemas.gateway_urls import base_of
from trainwire.stack.database import reading
from trainwire.stack.errors import Problem


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
