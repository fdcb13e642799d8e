"""`trainwire doctor`: checks servers and settings, and prints a remedy for each failed check."""

from __future__ import annotations

from typing import Final

import typer
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError

from trainwire.cli.commands.options import AsJson, DataDir, servers, write_json
from trainwire.cli.doctor import alerts, flow, object_store, postgres_server, processes, redis_server
from trainwire.cli.redis_clients import redis_clients
from trainwire.cli.terminal import console, one_line, say, table
from trainwire.stack.database import settings_for, sinks_for
from trainwire.stack.errors import Problem
from trainwire.stores.postgres.connections import open_engine
from trainwire.stores.postgres.deliveries import counted
from trainwire.workers.findings import Finding, Findings, Level, Part, worst
from trainwire.workers.settings import Settings
from trainwire.workers.sinks.plugin import plugin

MARKS: Final[dict[Level, tuple[str, str]]] = {
    "ok": ("ok", "green"),
    "warning": ("warning", "yellow"),
    "error": ("ERROR", "bold red"),
}


def doctor(as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Check all servers and settings, and print a remedy for each failed check.

    Exit code 0: all checks passed; 1: warnings; 2: errors. If a bucket for checkpoints is set, a small object is
    written to it and deleted again.
    """
    try:
        findings = run_checks(settings_for(servers(data_dir), with_redis=True))
    except Problem as exc:
        findings = [Part("settings").error("settings", str(exc), "docs/settings.md lists all settings")]
    if as_json:
        write_json(findings)
    else:
        _show(findings)
    raise typer.Exit(worst(findings))


def run_checks(settings: Settings) -> list[Finding]:
    """Run the checks of all parts of the system; return their results in the order in which they are printed."""
    findings: list[Finding] = []
    engine = open_engine(settings, name="trainwire-doctor")
    try:
        with redis_clients(settings) as (client, streams):
            findings += [*redis_server.check(client, settings, streams), *postgres_server.check(engine)]
            findings += [*processes.check(client, settings), *flow.check_streams(client, settings, streams)]
        if postgres_server.has_our_tables(findings):
            with engine.connect() as connection:
                findings += flow.check_rows(connection, settings)
                if settings.alert_rules is not None:
                    findings += alerts.check(settings.alert_rules, connection)
    except SQLAlchemyError as exc:
        text = f"stopped answering during the checks: {exc}"
        findings.append(Part("postgres").error("answers", text, "run doctor again"))
    finally:
        engine.dispose()
    return [*findings, *_check_sinks(settings)]


def _check_sinks(settings: Settings) -> Findings:
    for sink in sinks_for(settings):
        yield from plugin(sink.name).examine(settings)
    if bucket := settings.trainwire_checkpoint_bucket:
        yield from object_store.check_s3(bucket, settings.trainwire_checkpoint_prefix)


def _show(findings: list[Finding]) -> None:
    shown = table("", "", "")
    for finding in findings:
        mark, style = MARKS[finding.level]
        text = Text(one_line(finding.says))
        if finding.remedy is not None:
            text.append(f"\n-> {one_line(finding.remedy)}", style="bold")
        shown.add_row(Text(mark, style=style), finding.part, text)
    console().print(shown)
    count = {level: sum(finding.level == level for finding in findings) for level in MARKS}
    problems = ", ".join(counted(count[level], level) for level in ("error", "warning"))
    say(f"{problems}, {counted(count['ok'], 'check')} passed")
