"""Access to jobs through a gateway, for commands in an environment with TRAINWIRE_URL but without DATABASE_URL."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from trainwire.cli.job_references import job_to_change
from trainwire.cli.terminal import one_line, safe, warn
from trainwire.client.addresses import DATABASE_VARIABLE, URL_VARIABLES, find_address
from trainwire.client.client import Client
from trainwire.client.errors import ClientError, JobNotFound
from trainwire.client.gateway import Gateway
from trainwire.client.job import Job
from trainwire.stack.errors import Problem
from trainwire.stores.postgres.deletion import Choice, Deletion
from trainwire.stores.postgres.deletion_plan import DeletionPlan
from trainwire.stores.postgres.jobs.job_edits import JobEdit
from trainwire.stores.postgres.jobs.job_references import LAST, number_in

POLL_S: Final = 0.5
MOST_WAIT_S: Final = 60.0
"""Seconds without progress after which a command stops waiting for a deletion; no worker may be running."""


class GatewayJobs:
    """Reads and changes jobs through a gateway; changes need the token of an admin."""

    def __init__(self, url: str, token: str | None) -> None:
        self.gateway = Gateway(url, token)
        self.client = Client(url, token=token)
        self.url = self.gateway.url

    def job(self, reference: str) -> Job:
        """Return the job that `reference` names; print a warning if another job has `reference` as its name."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            found = self.client.job(reference)
        if found.also_named is not None:
            warn(f"{_also_named(reference, found)}: use the number {found.also_named} for that one")
        return found

    def number_of(self, reference: str, *, may_abbreviate: bool) -> int:
        """Return the number of the job that `reference` names; a number is returned even if its job was deleted.

        If `may_abbreviate` is False, the beginning of a name or number, and a reference that is also the name of
        another job, are rejected with `Problem`.
        """
        try:
            found = self.job(reference)
        except JobNotFound:
            number = number_in(reference)
            if number is None:
                raise
            return number
        if not may_abbreviate and found.also_named is not None:
            raise Problem(f"{_also_named(reference, found)}: use the number {found.also_named}, or rename it")
        if not may_abbreviate and reference not in (LAST, str(found.id), found.name):
            raise Problem(f"no job {one_line(reference)!r} at {self.url}: write out its number or name")
        return found.id

    def edit(self, reference: str, edit: JobEdit) -> int:
        """Change a job's name, note, tags or archived state; return the job's number."""
        job_id = job_to_change(reference, self.job(reference).id)
        self.gateway.json(f"/jobs/{job_id}", method="PATCH", document=msgspec.to_builtins(edit))
        return job_id

    def checkpoint_url(self, job: Job, which: str, expires_s: int) -> str:
        """Return a signed URL to download the file of a checkpoint: `best`, `last`, or the one with this `seq`."""
        path = f"/jobs/{job.id}/checkpoints/{job.checkpoint(which).seq}/url"
        return str(self.gateway.json(path, {"expires_s": expires_s})["url"])

    def plan_or_deletion(self, job_id: int) -> DeletionPlan | Deletion:
        """Return the plan to delete a job, or the progress of its deletion if it was deleted already."""
        report = self.gateway.json(f"/jobs/{job_id}", {"dry_run": "true"}, method="DELETE")
        return _deletion(report) if report.get("plan") is None else msgspec.convert(report["plan"], DeletionPlan)

    def delete(
        self,
        job_id: int,
        choice: Choice,
        reason: str | None,
        *,
        force: bool,
        on_progress: Callable[[Deletion], None],
    ) -> Deletion:
        """Delete a job, wait for the workers, and return the progress of the deletion.

        A job that has not ended is deleted only if `force` is True. `on_progress` is called each time that the
        progress was read. Stops waiting when the workers have tried every store once, or after MOST_WAIT_S seconds
        without progress.
        """
        flags = {"force": force, "with_files": choice.with_files, **{f"keep_{sink}": True for sink in choice.keep}}
        query = {name: "true" for name, is_set in flags.items() if is_set}
        begun = known = _deletion(
            self.gateway.json(f"/jobs/{job_id}", {**query, "reason": reason}, method="DELETE")
        )
        changed_at = time.monotonic()
        while not known.is_finished and known.attempts == begun.attempts:
            if time.monotonic() - changed_at > MOST_WAIT_S:
                break
            time.sleep(POLL_S)
            before, known = known, _deletion(self.gateway.json(f"/jobs/{job_id}/deletion"))
            if known.parts != before.parts:
                changed_at = time.monotonic()
            on_progress(known)
        return known

    def forget(self, job_id: int) -> None:
        """Delete the tombstone of a job, so that its number can be reused."""
        self.gateway.json(f"/jobs/{job_id}/deletion", method="DELETE")


@contextmanager
def gateway_jobs(data_dir: Path | None) -> Iterator[GatewayJobs | None]:
    """Yield access to jobs through the gateway in TRAINWIRE_URL or GATEWAY_URL; None if Postgres is to be read.

    Postgres is read if `data_dir` is given, if DATABASE_URL is set, or if neither URL is set: then the caller
    looks for a running `trainwire up`. Exceptions of the client become a `Problem`.
    """
    if (
        data_dir is not None
        or os.environ.get(DATABASE_VARIABLE)
        or not any(os.environ.get(name) for name in URL_VARIABLES)
    ):
        yield None
        return
    try:
        address = find_address(None, None, None)
        remote = GatewayJobs(address.url or "", address.token)
    except ClientError as exc:
        raise Problem(safe(str(exc))) from exc
    try:
        yield remote
    except ClientError as exc:
        raise Problem(safe(str(exc))) from exc
    except (msgspec.ValidationError, KeyError) as exc:
        reason = f"{remote.url} answers in another form ({exc}): {remote.gateway.versions()}"
        raise Problem(safe(reason)) from exc


def _also_named(reference: str, found: Job) -> str:
    return f"{one_line(reference)} is job {found.id}, and also the name of job {found.also_named}"


def _deletion(report: dict[str, Any]) -> Deletion:
    return msgspec.convert(report, Deletion)
