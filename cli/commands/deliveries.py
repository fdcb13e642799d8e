"""`trainwire deliveries` and `trainwire replay`: what the other stores have, and sending it again."""

from __future__ import annotations

from typing import Annotated

import typer
from sqlalchemy import Connection

from trainwire.cli.commands.jobs import known_job
from trainwire.cli.commands.options import (
    SINK_NAMES,
    AsJson,
    DataDir,
    JobReference,
    Sink,
    plain,
    servers,
    write_json,
)
from trainwire.cli.job_references import job_id_of
from trainwire.cli.numbers import MOST_SHOWN, whole_option
from trainwire.cli.resending import replay as send_again
from trainwire.cli.resending import retry_now
from trainwire.cli.terminal import cell, console, one_line, say, shown_clock, table
from trainwire.schemas.sinks import SINKS
from trainwire.schemas.validation import MAX_ID
from trainwire.stack.database import reading, settings_for, sinks_for, writing
from trainwire.stack.errors import Problem
from trainwire.stores.postgres.deliveries import (
    SinkReport,
    counted,
    shown_age,
    shown_error,
    shown_health,
    shown_totals,
    sink_report,
    was_used,
)
from trainwire.workers.settings import Settings

COLUMNS = ("job", "rows", "oldest", "confirmed", "attempts", "dead-lettered", "last error")

app = typer.Typer(help="What the stores besides Postgres do not have yet, and whether they answer.")


def known_sink(name: str) -> str:
    """Return the name of a sink; raise `Problem` where there is none of that name."""
    if name not in SINKS:
        raise Problem(f"no such sink {name!r}: choose {SINK_NAMES}")
    return name


def _in_use(connection: Connection, settings: Settings) -> list[str]:
    """Return the sinks that are on, or have been."""
    on = {sink.name for sink in sinks_for(settings)}
    return [sink for sink in SINKS if sink in on or was_used(connection, sink)]


@app.callback(invoke_without_command=True)
def deliveries(
    context: typer.Context,
    as_json: AsJson = False,
    limit: Annotated[int, whole_option(1, MOST_SHOWN, "Most jobs to show.")] = 50,
    data_dir: DataDir = None,
) -> None:
    """Show how far each store besides Postgres is behind, the longest waiting job first."""
    if context.invoked_subcommand is not None:
        return
    address = servers(data_dir)
    with reading(address) as connection:
        found = [sink_report(connection, sink, limit) for sink in _in_use(connection, settings_for(address))]
    if as_json:
        write_json([_document(each) for each in found])
        return
    for each in found:
        _show(each)


@app.command()
def retry(
    sink: Annotated[str | None, typer.Option(metavar="SINK", help=f"Only this store: {SINK_NAMES}.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Try a store that does not answer, and jobs that it fails, now, not when their next attempt is due."""
    address = servers(data_dir)
    with writing(address) as connection:
        names = _in_use(connection, settings_for(address)) if sink is None else [known_sink(sink)]
        retried = {name: retry_now(connection, name) for name in names}
    for name, (down_since, jobs) in retried.items():
        if down_since is not None:
            say(f"{name} does not answer since {shown_clock(down_since)}: the next attempt is now")
        elif jobs:
            say(f"{name} answers, and has failed {counted(jobs, 'job')}: the next attempt is now")
        else:
            say(f"{name} is not known to be down: there is nothing to try again")


def replay(
    job: JobReference,
    sink: Sink,
    from_seq: Annotated[int, whole_option(1, MAX_ID, "The first row to send again.", "--from", metavar="SEQ")] = 1,
    data_dir: DataDir = None,
) -> None:
    """Send a job's rows to a store again, those that it had refused too; it keeps one of two that are the same."""
    known_sink(sink)
    with writing(servers(data_dir)) as connection:
        job_id = job_id_of(connection, job)
        last_seq = getattr(known_job(connection, job_id), SINKS[sink].rows.last_seq)
        if from_seq > last_seq:
            has = f"has the rows 1 to {last_seq}" if last_seq else f"has no {SINKS[sink].rows.kind} rows yet"
            raise Problem(f"job {job_id} {has}, and none from {from_seq} on: name a row that is there with --from")
        sent = send_again(connection, sink, job_id, from_seq)
    if not sent.rows:
        say(f"nothing to send again: {sink} has none of the rows of job {job_id} from {from_seq} on yet")
        return
    refused = f", {sent.dead_letters:,} of them dead letters until now" if sent.dead_letters else ""
    say(f"{counted(sent.rows, 'row')} of job {job_id}, from {from_seq} on, will be sent to {sink} again{refused}")


def _document(found: SinkReport) -> dict[str, object]:
    return {**plain(found.health), **plain(found.totals), "jobs": found.jobs}


def _show(found: SinkReport) -> None:
    say(f"{found.health.sink}: {one_line(shown_health(found.health, shown_clock))}")
    if found.jobs:
        shown = table(*COLUMNS, right=frozenset(COLUMNS[1:-1]))
        for job in found.jobs:
            numbers = (job.confirmed_seq, job.attempts, job.dead_lettered)
            values = (
                job.job_id,
                f"{job.rows_behind:,}",
                shown_age(job.oldest_age_s),
                *(f"{n:,}" for n in numbers),
            )
            shown.add_row(*(cell(value) for value in values), cell(shown_error(job, shown_clock)))
        console().print(shown)
    more = found.totals.jobs_behind - len(found.jobs)
    if more > 0:
        say(f"and {counted(more, 'more job')} behind, {found.totals.rows_behind:,} rows in all: see --limit")
    say(shown_totals(found.totals))
