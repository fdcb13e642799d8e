"""`trainwire doctor`: what can hurt, each with its remedy."""

from __future__ import annotations

from typing import Final

import typer
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError

from trainwire.cli.commands.options import AsJson, DataDir, servers, write_json
from trainwire.cli.doctor import flow, outside, postgres_server, processes, redis_server
from trainwire.cli.terminal import console, one_line, say, table
from trainwire.stack.database import settings_for, sinks_for
from trainwire.stack.errors import Problem
from trainwire.stores.postgres.connections import open_engine, open_redis, open_stream_client
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
    """Look at every store and setting that can hurt, and say the remedy.

    Exit code 0: all is well; 1: warnings; 2: errors. Where there is a bucket for checkpoints, a small object is
    written below its prefix and deleted again.
    """
    try:
        findings = examine(settings_for(servers(data_dir), with_redis=True))
    except Problem as exc:
        findings = [Part("settings").error("settings", str(exc), "docs/settings.md has all of them")]
    if as_json:
        write_json(findings)
    else:
        _show(findings)
    raise typer.Exit(worst(findings))


def examine(settings: Settings) -> list[Finding]:
    """Return what is found with these settings, one part after the other."""
    client, engine = open_redis(settings), open_engine(settings, name="trainwire-doctor")
    streams = open_stream_client(settings)
    try:
        findings = [*redis_server.look(client, settings, streams), *postgres_server.look(engine)]
        findings += [*processes.look(client, settings), *flow.look_at_streams(client, settings, streams)]
        if postgres_server.has_our_tables(findings):
            with engine.connect() as connection:
                findings += flow.look_at_rows(connection, settings)
    except SQLAlchemyError as exc:
        findings.append(Part("postgres").error("answers", f"went away meanwhile: {exc}", "look again"))
    finally:
        client.close()
        if streams is not None:
            streams.close()
        engine.dispose()
    return [*findings, *_outside(settings)]


def _outside(settings: Settings) -> Findings:
    for sink in sinks_for(settings):
        yield from plugin(sink.name).examine(settings)
    if settings.trainwire_checkpoint_bucket:
        yield from outside.look_at_s3(settings.trainwire_checkpoint_bucket, settings.trainwire_checkpoint_prefix)


def _show(findings: list[Finding]) -> None:
    shown = table("", "", "")
    for finding in findings:
        mark, style = MARKS[finding.level]
        says = Text(one_line(finding.says))
        if finding.remedy is not None:
            says.append(f"\n-> {one_line(finding.remedy)}", style="bold")
        shown.add_row(Text(mark, style=style), finding.part, says)
    console().print(shown)
    count = {level: sum(finding.level == level for finding in findings) for level in MARKS}
    problems = ", ".join(counted(count[level], level) for level in ("error", "warning"))
    say(f"{problems}, {counted(count['ok'], 'check')} passed")
