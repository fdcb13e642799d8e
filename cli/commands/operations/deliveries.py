"""`trainwire deliveries` and `trainwire replay`: show the lag of sinks, retry deliveries, deliver rows again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final

import typer
from sqlalchemy import Connection, delete, text
from sqlalchemy.exc import OperationalError

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
from trainwire.cli.formats import shown_clock
from trainwire.cli.job_references import named_job
from trainwire.cli.numbers import MOST_SHOWN, whole_option
from trainwire.cli.terminal import one_line, print_table, say
from trainwire.schemas.sinks import SINKS
from trainwire.schemas.tables import dead_letters
from trainwire.schemas.wire.validation import MAX_ID
from trainwire.stack.database import reading, settings_for, sinks_for, writing
from trainwire.stack.errors import Problem
from trainwire.stores.postgres.connections import LOCK_NOT_AVAILABLE
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
from trainwire.workers.sinks.cursors import await_lease, move_back, read_cursors, try_again
from trainwire.workers.sinks.plugin import plugin

COLUMNS = ("job", "rows", "oldest", "confirmed", "attempts", "dead-lettered", "last error")
LEASE_TIMEOUT_S: Final = 60
_NONE: Final = "no store besides Postgres is switched on: see LOKI_URL and MLFLOW_TRACKING_URI in docs/settings.md"

app = typer.Typer(help="Lag of the stores besides Postgres, and whether they answer.")


def known_sink(name: str) -> str:
    """Return `name` if a sink has this name; else raise `Problem`."""
    if name not in SINKS:
        raise Problem(f"no such sink {name!r}: choose {SINK_NAMES}")
    return name


def _in_use(connection: Connection, settings: Settings) -> list[str]:
    """Return the names of the sinks that are enabled now or have been used before."""
    on = {sink.name for sink in sinks_for(settings)}
    return [sink for sink in SINKS if sink in on or was_used(connection, sink)]


@app.callback(invoke_without_command=True)
def deliveries(
    context: typer.Context,
    as_json: AsJson = False,
    limit: Annotated[int, whole_option(1, MOST_SHOWN, "Most jobs to show.")] = 50,
    data_dir: DataDir = None,
) -> None:
    """Show how far each store besides Postgres is behind. The job with the oldest undelivered row comes first."""
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
    if not found:
        say(_NONE)


@app.command()
def retry(
    sink: Annotated[str | None, typer.Option(metavar="SINK", help=f"Only this store: {SINK_NAMES}.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Retry at once a store that does not answer, and the jobs whose deliveries have failed."""
    address = servers(data_dir)
    with writing(address) as connection:
        names = _in_use(connection, settings_for(address)) if sink is None else [known_sink(sink)]
        retried = {name: retry_now(connection, name) for name in names}
    if not retried:
        say(_NONE)
    for name, (down_since, jobs) in retried.items():
        if down_since is not None:
            say(f"{name} does not answer since {shown_clock(down_since)}: the next attempt is now")
        elif jobs:
            say(f"{name} answers, and has failed {counted(jobs, 'job')}: the next attempt is now")
        else:
            say(f"{name} is not known to be down: there is nothing to retry")


def replay(
    job: JobReference,
    sink: Sink,
    from_seq: Annotated[int, whole_option(1, MAX_ID, "The first row to send again.", "--from", metavar="SEQ")] = 1,
    data_dir: DataDir = None,
) -> None:
    """Send a job's rows to a store again, including those that it refused.

    Rows that the store already has are not stored twice.
    """
    known_sink(sink)
    with writing(servers(data_dir)) as connection:
        found = named_job(connection, job)
        job_id, last_seq = found.id, getattr(found, SINKS[sink].rows.last_seq)
        if from_seq > last_seq:
            has = f"has the rows 1 to {last_seq}" if last_seq else f"has no {SINKS[sink].rows.kind} rows yet"
            raise Problem(f"job {job_id} {has}, and none from {from_seq} on: name a row that is there with --from")
        sent = replay_rows(connection, sink, job_id, from_seq)
    if not sent.rows:
        say(f"nothing to send again: {sink} has none of the rows of job {job_id} from {from_seq} on yet")
        return
    refused = f", {sent.dead_letters:,} of them dead letters until now" if sent.dead_letters else ""
    say(f"{counted(sent.rows, 'row')} of job {job_id}, from {from_seq} on, will be sent to {sink} again{refused}")


@dataclass(frozen=True)
class Replayed:
    """The result of a replay: the number of rows to deliver again, and how many of them were dead letters."""

    rows: int
    dead_letters: int


def retry_now(connection: Connection, sink: str) -> tuple[datetime | None, int]:
    """Make all retries of a sink due now: of the sink itself if it is down, and of its failed deliveries.

    Returns the time since which the sink has not answered (None if it answers), and the number of jobs whose
    deliveries have failed.
    """
    jobs = try_again(connection, sink)
    due = text(
        "UPDATE sink_states SET next_probe_at = now() WHERE sink = :sink AND down_since IS NOT NULL "
        "RETURNING down_since"
    )
    return connection.execute(due, {"sink": sink}).scalar_one_or_none(), jobs


def replay_rows(
    connection: Connection, sink: str, job_id: int, from_seq: int, timeout_s: int = LEASE_TIMEOUT_S
) -> Replayed:
    """Move the sink's cursor of a job back, so that workers deliver its rows from `from_seq` on again.

    Dead letters of these rows are deleted; a row that is refused again becomes a new dead letter. Raises `Problem`
    if another process holds the lease on the delivery for longer than `timeout_s`.
    """
    _wait_for_lease(connection, sink, job_id, timeout_s)
    confirmed_seq = read_cursors(connection, sink, [job_id])[job_id].confirmed_seq
    numbers = {"job_id": job_id, "first": from_seq, "last": confirmed_seq}
    rows = connection.execute(
        text(
            f"SELECT count(*) FROM {SINKS[sink].rows.table} "  # noqa: S608 - our own table
            "WHERE job_id = :job_id AND seq BETWEEN :first AND :last"
        ),
        numbers,
    ).scalar_one()
    letters = connection.execute(
        delete(dead_letters).where(
            dead_letters.c.stream == f"sink:{sink}",
            dead_letters.c.job_id == job_id,
            dead_letters.c.seq.between(from_seq, confirmed_seq),
        )
    ).rowcount
    move_back(connection, sink, job_id, from_seq)
    plugin(sink).replayed(connection, job_id)
    connection.execute(
        text(
            "UPDATE delivery_cursors SET dead_lettered = greatest(dead_lettered - :letters, 0) "
            "WHERE sink = :sink AND job_id = :job_id"
        ),
        {"letters": letters, "sink": sink, "job_id": job_id},
    )
    return Replayed(rows, letters)


def _wait_for_lease(connection: Connection, sink: str, job_id: int, timeout_s: int) -> None:
    """Wait until no worker delivers the job to the sink, and prevent new deliveries until the transaction ends.

    A running delivery would overwrite the cursor. Raises `Problem` after `timeout_s` seconds.
    """
    connection.execute(text("SELECT set_config('lock_timeout', :timeout, true)"), {"timeout": f"{timeout_s}s"})
    try:
        await_lease(connection, sink, job_id)
    except OperationalError as exc:
        if getattr(exc.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
            raise
        raise Problem(
            f"a delivery of job {job_id} to {sink} has run for more than {timeout_s} s: nothing was changed, "
            "try again when `trainwire deliveries` shows that it has moved on"
        ) from exc


def _document(found: SinkReport) -> dict[str, object]:
    return {**plain(found.health), **plain(found.totals), "jobs": found.jobs}


def _show(found: SinkReport) -> None:
    say(f"{found.health.sink}: {one_line(shown_health(found.health, shown_clock))}")
    if found.jobs:
        rows = (
            (
                *(job.job_id, f"{job.rows_behind:,}", shown_age(job.oldest_age_s)),
                *(f"{number:,}" for number in (job.confirmed_seq, job.attempts, job.dead_lettered)),
                shown_error(job, shown_clock),
            )
            for job in found.jobs
        )
        print_table(COLUMNS, rows, right=COLUMNS[1:-1])
    more = found.totals.jobs_behind - len(found.jobs)
    if more > 0:
        say(f"and {counted(more, 'more job')} behind, {found.totals.rows_behind:,} rows in all: see --limit")
    say(shown_totals(found.totals))
