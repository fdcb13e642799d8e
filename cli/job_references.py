"""Finds the job that a reference names: a number, a name, the beginning of either, or `last`."""

from __future__ import annotations

import shlex

from sqlalchemy import Connection

from trainwire.cli.formats import local, shown_time
from trainwire.cli.terminal import one_line, warn
from trainwire.stack.errors import Problem
from trainwire.stores.postgres.deletion import find_deletion
from trainwire.stores.postgres.jobs.job_lookup import LEAST_PREFIX, Job, find_job
from trainwire.stores.postgres.jobs.job_references import LAST, find_referenced, number_in


def job_id_of(connection: Connection, reference: str, *, may_abbreviate: bool = True) -> int:
    """Return the number of the job that `reference` names.

    `last` means the newest job. A name, or the beginning of a name or of a generated number, must match exactly
    one job. A number is returned even if no job has it, so the caller must check it. If `reference` is `last` or a
    number, and another job has it as its name, a warning is printed.
    If `may_abbreviate` is False, beginnings do not match, and the warning is an error. Raises `Problem` if no job
    or several jobs match; its text lists the candidates.
    """
    text = reference.encode(errors="replace").decode()
    if not text.strip():
        raise Problem("the job's name is empty: `trainwire jobs` lists numbers and names")
    found = find_referenced(connection, text, may_abbreviate=may_abbreviate)
    if found.jobs and found.total > 1:
        raise Problem(_candidates(text, found.jobs, found.total))
    job_id = found.jobs[0].id if found.jobs else number_in(text)
    if job_id is None:
        raise Problem(
            "no jobs yet: `trainwire run -- COMMAND` makes one"
            if text == LAST
            else f"no job {one_line(text)!r} in the database: `trainwire jobs` lists numbers and names"
        )
    if found.also_named is not None:
        _report_other(text, job_id, found.also_named, is_strict=not may_abbreviate)
    return job_id


def job_to_change(reference: str, job_id: int) -> int:
    """Return `job_id`; raise `Problem` if `reference` is only the last digits of this number.

    For commands that change a job: the number of another job, mistyped or not stored yet, may be such digits too.
    """
    if reference.isdecimal() and reference != str(job_id) and str(job_id).endswith(reference):
        raise Problem(f"no job {reference}; the number of job {job_id} ends so: write out its number to change it")
    return job_id


def named_job(connection: Connection, reference: str) -> Job:
    """Return the job that `reference` names (see `job_id_of`); raise `Problem` if no job or several jobs match."""
    return known_job(connection, job_id_of(connection, reference))


def known_job(connection: Connection, job_id: int) -> Job:
    """Return the job with the number `job_id`; raise `Problem` if it does not exist or was deleted."""
    job = find_job(connection, job_id)
    if job is not None:
        return job
    if (deletion := find_deletion(connection, job_id)) is not None:
        at, by = shown_time(deletion.deleted_at), deletion.deleted_by
        raise Problem(
            f"job {job_id} was deleted {at} by {by}: `trainwire delete {job_id} --dry-run` shows the deletion"
        )
    is_short = job_id < 10 ** (LEAST_PREFIX - 1)
    hint = f"; the beginning or end of a longer number needs {LEAST_PREFIX} digits" if is_short else ""
    raise Problem(f"no job {job_id} in the database: `trainwire jobs` lists all jobs{hint}")


def _report_other(text: str, job_id: int, other: int, *, is_strict: bool) -> None:
    """Warn that another job is named like the given number or `last`; if `is_strict`, raise `Problem` instead."""
    problem = f"{text} is job {job_id}, and also the name of job {other}"
    if is_strict:
        raise Problem(f"{problem}: use the number {other}, or rename it (`trainwire rename {other} NAME`)")
    warn(f"{problem}: use the number {other} for that one")


def _candidates(text: str, found: list[Job], count: int) -> str:
    lines = [f"{count:,} jobs fit {one_line(text)!r}: choose one by its number, the newest first"]
    width = max(len(one_line(job.name or "")) for job in found)
    for job in found:
        started = "" if job.started_at is None else f"{local(job.started_at):%Y-%m-%d %H:%M:%S}"
        lines.append(f"  {job.id:<19}  {one_line(job.name or ''):<{width}}  {job.status:<9}  {started}".rstrip())
    if count > len(found):
        command = f"trainwire jobs --search {shlex.quote(one_line(text))} --limit {count}"
        lines.append(f"  and {count - len(found):,} more: see `{command}`")
    return "\n".join(lines)
