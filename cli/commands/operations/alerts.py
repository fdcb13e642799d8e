"""`trainwire alerts` and `trainwire alert`: show the log of alerts, test destinations, send an alert again."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from trainwire.cli.commands.options import AsJson, DataDir, servers, write_json
from trainwire.cli.formats import shown_clock
from trainwire.cli.job_references import named_job
from trainwire.cli.numbers import MOST_SHOWN, whole, whole_option
from trainwire.cli.terminal import one_line, print_table, say
from trainwire.schemas.wire.validation import MAX_ID
from trainwire.stack.database import reading, settings_for, writing
from trainwire.stack.errors import Problem, as_problem
from trainwire.stores.postgres.alerts import ALERT_STATES, AlertEntry, find_alerts, resend_alert
from trainwire.workers.alerts.delivery import sender_of
from trainwire.workers.alerts.rules import AlertRules, Destination
from trainwire.workers.alerts.rules_file import WrongRules, load_rules
from trainwire.workers.alerts.senders import AlertMessage, NotSent

COLUMNS = ("id", "time", "state", "level", "rule", "to", "title", "reason")
STATES = ", ".join(ALERT_STATES)
EXIT_NOT_SENT = 1

app = typer.Typer(no_args_is_help=True, help="Alerts: test the destinations, send an alert again.")


def alerts(
    job: Annotated[str | None, typer.Option("--job", metavar="JOB", help="Only of this job.")] = None,
    state: Annotated[list[str] | None, typer.Option(metavar="STATE", help=f"Only these: {STATES}.")] = None,
    limit: Annotated[int, whole_option(1, MOST_SHOWN, "Most alerts to show.")] = 50,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Show the log of alerts, newest first: sent, waiting and failed ones, with the reason of a failure."""
    for name in state or ():
        if name not in ALERT_STATES:
            raise Problem(f"no such state {name!r}: choose {STATES}")
    with reading(servers(data_dir)) as connection:
        job_id = None if job is None else named_job(connection, job).id
        found = find_alerts(connection, job_id=job_id, states=state or (), limit=limit)
    if as_json:
        write_json(found)
    elif found:
        print_table(COLUMNS, map(_row, found))
    else:
        say("no alerts")


@app.command("test")
def send_test(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="DESTINATION...", help="Of the rules; default: all.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Send a test alert to destinations, directly from this process; exit code 1 if one does not confirm it."""
    rules = _rules(data_dir)
    wanted = names or list(rules.destinations)
    for name in wanted:
        if name not in rules.destinations:
            raise Problem(f"no such destination {name!r}: there are {', '.join(rules.destinations) or 'none'}")
    if not wanted:
        raise Problem("the rules have no destination: add [destinations.NAME] (docs/alerts.md)")
    failures = [_failure(name, rules.destinations[name]) for name in wanted]
    for name, failure in zip(wanted, failures, strict=True):
        say(f"{name}: {'sent' if failure is None else f'not sent: {one_line(failure)}'}")
    if any(failures):
        raise typer.Exit(EXIT_NOT_SENT)


@app.command()
def resend(
    alert_id: Annotated[
        int, typer.Argument(metavar="ID", parser=whole(1, MAX_ID, "the number of an alert"), help="Its number.")
    ],
    data_dir: DataDir = None,
) -> None:
    """Send an alert again that was sent or suppressed, that failed, or that may not have arrived."""
    with writing(servers(data_dir)) as connection:
        if not resend_alert(connection, alert_id):
            raise Problem(f"no alert {alert_id} that has ended: see `trainwire alerts`")
    say(f"alert {alert_id} is sent again")


def _rules(data_dir: Path | None) -> AlertRules:
    path = settings_for(servers(data_dir)).alert_rules
    if path is None:
        raise Problem("ALERT_RULES is not set: name the file of the rules (docs/alerts.md)")
    with as_problem(WrongRules):
        return load_rules(path)


def _failure(name: str, destination: Destination) -> str | None:
    """Send a test alert to a destination; return the reason if it fails, None if the destination confirms it."""
    message = AlertMessage(
        id=f"trainwire-test-{time.time_ns()}",
        rule="test",
        destination=name,
        level="info",
        title="Test of trainwire's alerts",
        content=f"The destination {name} receives alerts.",
        occurred_at=datetime.now(UTC),
    )
    try:
        sender_of(destination).send(message)
    except NotSent as exc:
        return str(exc)
    return None


def _row(entry: AlertEntry) -> tuple[object, ...]:
    at = shown_clock(entry.ended_at or entry.created_at)
    texts = (entry.state, entry.level, entry.rule, entry.destination, entry.title, entry.last_error or "")
    return (entry.id, at, *map(one_line, texts))
