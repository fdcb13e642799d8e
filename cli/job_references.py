"""Finds the job that a person names on the command line."""

from __future__ import annotations

import shlex
from typing import Final

from sqlalchemy import Connection

from trainwire.cli.terminal import local, one_line
from trainwire.stack.errors import Problem
from trainwire.stores.postgres.job_references import LAST, find_referenced, number_in
from trainwire.stores.postgres.jobs import Job

_SHOWN: Final = 10


def job_id_of(connection: Connection, reference: str, *, may_abbreviate: bool = True) -> int:
    """Return the number of the job that a reference names.

    `last` is the newest job. A number is that job's, also where another has it as a name. A name, or the beginning
    of a name or of a number that a trainer made, must be that of one job alone. A number of no job is
    returned too: the caller reports it. Raises `Problem`, with the candidates where there are several.
    """
    text = reference.encode(errors="replace").decode()
    if not text.strip():
        raise Problem("the job's name is empty: `trainwire jobs` lists numbers and names")
    found, count = find_referenced(connection, text, _SHOWN, may_abbreviate=may_abbreviate)
    if count > 1:
        raise Problem(_candidates(text, found, count))
    if found:
        return found[0].id
    if text == LAST:
        raise Problem("no jobs yet: `trainwire run -- COMMAND` makes one")
    number = number_in(text)
    if number is not None:
        return number
    raise Problem(f"no job {one_line(text)!r} in the database: `trainwire jobs` lists numbers and names")


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
