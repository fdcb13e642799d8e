"""Finds the job that a person names on the command line."""

from __future__ import annotations

import shlex
from typing import Final

from sqlalchemy import Connection

from trainwire.cli.terminal import local, one_line, warn
from trainwire.schemas.validation import MAX_ID
from trainwire.stack.errors import Problem
from trainwire.stores.postgres.job_pages import find_jobs
from trainwire.stores.postgres.jobs import Job, find_named, is_known

LAST: Final = "last"
_SHOWN: Final = 10


def job_id_of(connection: Connection, reference: str, *, may_abbreviate: bool = True) -> int:
    """Return the number of the job that a reference names.

    `last` is the newest job, and a number that job's: with a warning if it is also the name of another job, and
    without `may_abbreviate` not at all. A name, or the beginning of a name or of a number that a trainer made,
    must be that of one job alone. A number of no job is returned too: the caller reports it.

    Raises `Problem`, with the candidates where there are several.
    """
    text = reference.encode(errors="replace").decode()
    if not text.strip():
        raise Problem("the job's name is empty: `trainwire jobs` lists numbers and names")
    if text == LAST:
        newest = find_jobs(connection, limit=1)
        if newest:
            return _unless_named(connection, text, newest[0].id, is_strict=not may_abbreviate)
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else 0
    if 1 <= number <= MAX_ID and is_known(connection, number):
        return _unless_named(connection, text, number, is_strict=not may_abbreviate)
    found, count = find_named(connection, text, _SHOWN, may_abbreviate=may_abbreviate)
    if count == 1:
        return found[0].id
    if found:
        raise Problem(_candidates(text, found, count))
    if 1 <= number <= MAX_ID:
        return number
    if text == LAST:
        raise Problem("no jobs yet: `trainwire run -- COMMAND` makes one")
    raise Problem(f"no job {one_line(text)!r} in the database: `trainwire jobs` lists numbers and names")


def _unless_named(connection: Connection, text: str, job_id: int, *, is_strict: bool) -> int:
    """Return the job of a number or of `last`; warn, or raise if strict, if it is also another job's name."""
    named, _ = find_named(connection, text, 2, may_abbreviate=False)
    others = [job.id for job in named if job.id != job_id]
    if others:
        problem = f"{text} is job {job_id}, and also the name of job {others[0]}"
        if is_strict:
            raise Problem(
                f"{problem}: use the number {others[0]}, or rename it (`trainwire rename {others[0]} NAME`)"
            )
        warn(f"{problem}: use the number {others[0]} for that one")
    return job_id


def _candidates(text: str, found: list[Job], count: int) -> str:
    lines = [f"{count:,} jobs fit {one_line(text)!r}: choose one by its number, the newest first"]
    width = max(len(one_line(job.name or "")) for job in found)
    for job in found:
        started = "" if job.started_at is None else f"{local(job.started_at):%Y-%m-%d %H:%M:%S}"
        lines.append(f"  {job.id:<19}  {one_line(job.name or ''):<{width}}  {job.status:<9}  {started}".rstrip())
    if count > len(found):
        command = f"trainwire jobs --name {shlex.quote(one_line(text))} --limit {count}"
        lines.append(f"  and {count - len(found):,} more: see `{command}`")
    return "\n".join(lines)
