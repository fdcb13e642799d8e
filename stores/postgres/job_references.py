"""Finds the jobs that a person names: by number, by name, by the beginning of either, or as the newest."""

from __future__ import annotations

from typing import Final, NamedTuple

from sqlalchemy import Connection

from trainwire.schemas.validation import MAX_ID
from trainwire.stores.postgres.job_pages import find_jobs
from trainwire.stores.postgres.jobs import Job, find_job, find_named, is_known

LAST: Final = "last"
MOST_CANDIDATES: Final = 10


class ReferencedJobs(NamedTuple):
    """The newest jobs that a reference names, and how many there are; a deleted job is counted only.

    `also_named` is the number of another job, which has this number or `last` as its name.
    """

    jobs: list[Job]
    total: int
    also_named: int | None = None


def number_in(reference: str) -> int | None:
    """Return the number of a job that a text is; None for any other text."""
    number = int(reference) if reference.isascii() and reference.isdecimal() and len(reference) < 20 else 0
    return number if 1 <= number <= MAX_ID else None


def find_referenced(connection: Connection, reference: str, *, may_abbreviate: bool = True) -> ReferencedJobs:
    """Return at most `MOST_CANDIDATES` jobs that a reference names.

    `last` is the newest job. A number is that job's, also where another has it as a name; else see `find_named`.
    """
    if reference == LAST and (newest := find_jobs(connection, limit=1)):
        return ReferencedJobs(newest, 1, _also_named(connection, reference, newest[0].id))
    number = number_in(reference)
    if number is not None and is_known(connection, number):
        job = find_job(connection, number)
        return ReferencedJobs([] if job is None else [job], 1, _also_named(connection, reference, number))
    return ReferencedJobs(*find_named(connection, reference, MOST_CANDIDATES, may_abbreviate=may_abbreviate))


def _also_named(connection: Connection, reference: str, job_id: int) -> int | None:
    named, _ = find_named(connection, reference, 2, may_abbreviate=False)
    return next((job.id for job in named if job.id != job_id), None)
