"""Resolves references to jobs: a number, a name, the beginning of either, or `last`."""

from __future__ import annotations

from typing import Final, NamedTuple

from sqlalchemy import Connection

from trainwire.schemas.wire.validation import MAX_ID
from trainwire.stores.postgres.jobs.job_lookup import Job, find_job, find_named, is_known
from trainwire.stores.postgres.jobs.job_pages import find_jobs

LAST: Final = "last"
MOST_CANDIDATES: Final = 10


class ReferencedJobs(NamedTuple):
    """The newest jobs that match a reference: a number, a name, the beginning of either, or `last`.

    `total` is the number of all matching jobs. A deleted job matches only by its number: then `jobs` is empty and
    `total` is 1. If the reference is a number or `last`, and another job has this text as its name, `also_named`
    is the number of that job.
    """

    jobs: list[Job]
    total: int
    also_named: int | None = None


def number_in(reference: str) -> int | None:
    """Parse the text of a job reference as a job number (1 to MAX_ID); return None if it is not one."""
    number = int(reference) if reference.isascii() and reference.isdecimal() and len(reference) < 20 else 0
    return number if 1 <= number <= MAX_ID else None


def find_referenced(connection: Connection, reference: str, *, may_abbreviate: bool = True) -> ReferencedJobs:
    """Return the newest jobs that match `reference`, at most `MOST_CANDIDATES`.

    `last` means the newest job that is not archived. A number means the job with this number, even if it was
    deleted or another job has the number as its name. Any other text is a name, or, if `may_abbreviate` is True,
    the beginning of a name or number (`find_named`). The same holds for a number or `last` if there is no such
    job.
    """
    if reference == LAST and (newest := find_jobs(connection, 1)):
        return ReferencedJobs(newest, 1, _also_named(connection, reference, newest[0].id))
    number = number_in(reference)
    if number is not None and is_known(connection, number):
        job = find_job(connection, number)
        return ReferencedJobs([] if job is None else [job], 1, _also_named(connection, reference, number))
    return ReferencedJobs(*find_named(connection, reference, MOST_CANDIDATES, may_abbreviate=may_abbreviate))


def _also_named(connection: Connection, reference: str, job_id: int) -> int | None:
    named, _ = find_named(connection, reference, 2, may_abbreviate=False)
    return next((job.id for job in named if job.id != job_id), None)
