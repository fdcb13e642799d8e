"""Finds the jobs that a person names: by number, by name, by the beginning of either, or as the newest."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection

from trainwire.schemas.validation import MAX_ID
from trainwire.stores.postgres.job_pages import find_jobs
from trainwire.stores.postgres.jobs import Job, find_job, find_named, is_known

LAST: Final = "last"


def number_in(reference: str) -> int | None:
    """Return the number of a job that a text is; None for any other text."""
    number = int(reference) if reference.isascii() and reference.isdecimal() and len(reference) < 20 else 0
    return number if 1 <= number <= MAX_ID else None


def find_referenced(
    connection: Connection, reference: str, limit: int, *, may_abbreviate: bool = True
) -> tuple[list[Job], int]:
    """Return the newest jobs that a reference names, and how many there are; a deleted one is counted only.

    `last` is the newest job. A number is that job's, also where another has it as a name; else see `find_named`.
    """
    if reference == LAST:
        newest = find_jobs(connection, limit=1)
        return newest, len(newest)
    number = number_in(reference)
    if number is not None and is_known(connection, number):
        job = find_job(connection, number)
        return ([] if job is None else [job]), 1
    return find_named(connection, reference, limit, may_abbreviate=may_abbreviate)
