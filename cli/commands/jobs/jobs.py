"""`trainwire jobs`: lists jobs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, TypeVar, get_args

import typer
from rich.text import Text

from trainwire.cli.commands.options import AsJson, DataDir, servers, write_json
from trainwire.cli.formats import shown_number, shown_time
from trainwire.cli.gateway_jobs import gateway_jobs
from trainwire.cli.gateway_reads import GatewayReads
from trainwire.cli.numbers import MOST_SHOWN, whole_option
from trainwire.cli.terminal import cell, console, one_line, print_table, say
from trainwire.schemas.filters.job_filter import parse_fields, parse_filter, parse_sort
from trainwire.schemas.filters.tokens import WrongFilter
from trainwire.schemas.wire.messages import Status
from trainwire.stack.database import reading
from trainwire.stack.errors import Problem
from trainwire.stores.postgres.jobs.job_lookup import Job
from trainwire.stores.postgres.jobs.job_pages import JobQuery, find_page, read_columns

P = TypeVar("P")
MIN_NAME_WIDTH: Final = 12
STATUS_COLOURS = {"completed": "green", "failed": "red", "running": "cyan", "lost": "red", "stalled": "yellow"}


def jobs(  # noqa: PLR0917 - typer passes options by name
    status: Annotated[str | None, typer.Option(help=f"Only {', '.join(get_args(Status))}.")] = None,
    name: Annotated[str | None, typer.Option(metavar="TEXT", help="Only jobs with TEXT in their name.")] = None,
    search: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Only jobs with TEXT in number, name or tags.")
    ] = None,
    filter: Annotated[  # noqa: A002 - the option's name
        str,
        typer.Option(
            metavar="FILTER", help="Only jobs for which it is true: 'status = failed and params.lr < 1'."
        ),
    ] = "",
    sort: Annotated[
        str | None, typer.Option(metavar="FIELD", help="Sort by a field, descending with a minus: -metrics.loss.")
    ] = None,
    columns: Annotated[
        str, typer.Option(metavar="FIELDS", help="Fields to show too, separated by commas: params.lr,duration.")
    ] = "",
    archived: Annotated[bool, typer.Option("--archived", help="Archived jobs too.")] = False,
    limit: Annotated[int, whole_option(1, MOST_SHOWN, "Most jobs to show.")] = 50,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """List jobs, newest first unless --sort is given. docs/filters.md lists the fields for the options."""
    if status is not None and status not in get_args(Status):
        raise Problem(f"no such status {status!r}: choose one of {', '.join(get_args(Status))}")
    query = JobQuery(
        where=_parsed("--filter", filter, parse_filter),
        statuses=() if status is None else (status,),
        name=name,
        search=search,
        sort=_parsed("--sort", sort, parse_sort) if sort else None,
        with_archived=archived,
    )
    fields = _parsed("--columns", columns, parse_fields)
    with gateway_jobs(data_dir) as remote:
        if remote is not None:
            texts = {"status": status, "name": name, "search": search, "filter": filter, "sort": sort}
            given = {**texts, "columns": columns, "archived": "true" if archived else None}
            named = {key: value for key, value in given.items() if value}
            found, values = GatewayReads(remote).jobs(named, fields, limit)
    if remote is None:
        with reading(servers(data_dir)) as connection:
            found = find_page(connection, query, limit)
            values = read_columns(connection, [job.id for job in found], fields, query.now)
    if as_json:
        of_columns = {job.id: {"columns": values[job.id]} if fields else {} for job in found}
        write_json([job_document(job) | of_columns[job.id] for job in found])
    elif found:
        _show_table(found, values, list(fields))
    else:
        _say_none(status, is_narrowed=bool(name or search or filter))


def _parsed(option: str, text: str, parse: Callable[[str], P]) -> P:
    try:
        return parse(text)
    except WrongFilter as exc:
        raise Problem(f"{option}: {exc}") from exc


def _say_none(status: str | None, *, is_narrowed: bool) -> None:
    wanted = "" if status is None else f"{status} "
    say(f"no such {wanted}jobs" if is_narrowed else "no jobs yet" if status is None else f"no {wanted}jobs")


def job_document(job: Job) -> dict[str, Any]:
    """Return the job as a dictionary for JSON output; `rows` replaces the fields that end with `_seq`."""
    shown = {name: getattr(job, name) for name in Job.__struct_fields__ if not name.endswith("_seq")}
    return shown | {"rows": job.rows}


def progress_of(job: Job) -> str | None:
    """Format the epoch and the percentage that the job has reached; None if neither is known."""
    parts = []
    if job.current_epoch is not None:
        of = "" if job.total_epochs is None else f" of {job.total_epochs}"
        parts.append(f"epoch {job.current_epoch}{of}")
    # A percentage of zero epochs has no meaning.
    if job.progress_percent is not None and (job.total_epochs is None or job.total_epochs > 0):
        parts.append(f"{shown_number(job.progress_percent)} %")
    return ", ".join(parts) or None


def shown_status(job: Job) -> str:
    """Format the job's status, such as `stalled since TIME`, `lost since TIME` or `stopped by NAME`."""
    if job.status == "stopped" and job.stop:
        return f"stopped by {one_line(job.stop['requested_by'])}"
    return job.status if job.quiet_since is None else f"{job.status} since {shown_time(job.quiet_since)}"


def _show_table(found: list[Job], values: dict[int, dict[str, Any]], fields: list[str]) -> None:
    usual = ("attempt", "progress", "started", "log lines", "points", "checkpoints")
    heads = ("job", "name", "status", *(fields or usual))
    rows = []
    for job in found:
        status_cell = Text(shown_status(job), style=STATUS_COLOURS.get(job.status, ""))
        rest: Sequence[object] = (job.attempt, progress_of(job), shown_time(job.started_at), *job.rows.values())
        if fields:
            rest = [_column_value(field, values[job.id][field]) for field in fields]
        rows.append([cell(job.id), cell(job.name), status_cell, *map(cell, rest)])
    if sys.stdout.isatty():
        _cut_names(heads, rows)
    print_table(heads, rows)


def _cut_names(heads: Sequence[str], rows: list[list[Text]]) -> None:
    """Shorten the job names (the second column) so that each row of the table fits into one line.

    Names keep at least MIN_NAME_WIDTH characters, so the rows of a narrow terminal may be longer.
    """
    widths = [max(len(head), *(cells[index].cell_len for cells in rows)) for index, head in enumerate(heads)]
    between = 2 * (len(heads) - 1)
    left = console().width - (sum(widths) - widths[1]) - between
    for cells in rows:
        cells[1].truncate(max(MIN_NAME_WIDTH, left), overflow="ellipsis")


def _column_value(field: str, value: object) -> object:
    if isinstance(value, datetime):
        return shown_time(value)
    if field == "duration" and isinstance(value, float):
        return str(timedelta(seconds=round(value)))
    if isinstance(value, dict | list):
        return json.dumps(value)
    return None if value is None else shown_number(value)
