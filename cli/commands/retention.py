"""`trainwire retention`: which checkpoints and rows the next runs would delete."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Final

import typer

from trainwire.cli.commands.checkpoints import shown_size
from trainwire.cli.commands.options import AsJson, DataDir, servers, write_json
from trainwire.cli.terminal import cell, console, one_line, say, table
from trainwire.stack.database import reading, settings_for
from trainwire.stack.errors import Problem
from trainwire.stack.locate import Address
from trainwire.workers.checkpoints.surplus import Rule, Surplus, plan, retention_policy
from trainwire.workers.operations import row_retention
from trainwire.workers.settings import Settings


def retention(
    as_json: AsJson = False,
    rows: Annotated[bool, typer.Option("--rows", help="Old log and metric rows instead of checkpoints.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Show which checkpoints, or which old rows, the next retention runs would delete; deletes nothing itself."""
    address = servers(data_dir)
    settings = settings_for(address)
    if rows:
        _show_rows(address, settings, as_json)
        return
    try:
        keeping = retention_policy(settings)
    except ValueError as exc:
        raise Problem(str(exc)) from exc
    with reading(address) as connection:
        planned = {rule: plan(connection, keeping, rule) for rule in _SETTINGS}
    if as_json:
        write_json([asdict(each) for files in planned.values() for each in files])
        return
    if any(planned.values()):
        shown = table("job", "seq", "kind", "rule", "size", "uri", right=frozenset({"job", "seq", "size"}))
        for each in (each for files in planned.values() for each in files):
            size = None if each.size_bytes is None else shown_size(each.size_bytes)
            values = (each.job_id, each.seq, each.kind, each.rule, size, each.uri)
            shown.add_row(*(cell(value) for value in values))
        console().print(shown)
    for rule, files in planned.items():
        said = _sentence(settings, rule, files)
        say(one_line(f"{said} below {keeping.root}{_EXCEPT[rule].format(last=keeping.last)}"))


def _sentence(settings: Settings, rule: Rule, files: list[Surplus]) -> str:
    name = _SETTINGS[rule]
    choice = getattr(settings, name.lower())
    what = (
        "the next run deletes" if choice == "on" else "nothing is deleted; switched on, the next run would delete"
    )
    freed = shown_size(sum(each.size_bytes or 0 for each in files))
    return f"{name}={choice} here: {what} {len(files):,} {_FILES[rule].format(freed=freed)}"


_SETTINGS: Final[dict[Rule, str]] = {
    "superseded": "CHECKPOINT_REMOVE_SUPERSEDED",
    "surplus": "CHECKPOINT_RETENTION",
}
_FILES: Final[dict[Rule, str]] = {
    "superseded": "superseded uploads ({freed})",
    "surplus": "checkpoints ({freed}) of finished jobs",
}
_EXCEPT: Final[dict[Rule, str]] = {"superseded": "", "surplus": "; best and last {last} stay"}


def _show_rows(address: Address, settings: Settings, as_json: bool) -> None:
    keepings = row_retention.row_policies(settings)
    if not keepings:
        raise Problem("neither LOG_RETENTION_DAYS nor METRIC_RETENTION_DAYS is set: all rows stay")
    with reading(address) as connection:
        planned = [each for keeping in keepings for each in row_retention.plan(connection, keeping)]
    if as_json:
        write_json([asdict(each) for each in planned])
        return
    if planned:
        shown = table("table", "job", "rows", right=frozenset({"job", "rows"}))
        for each in planned:
            shown.add_row(each.table, cell(each.job_id), f"{each.rows:,}")
        console().print(shown)
    choice = settings.row_retention
    what = (
        "the next runs remove" if choice == "on" else "nothing is removed; switched on, the next runs would remove"
    )
    say(f"ROW_RETENTION={choice} here: {what} {sum(each.rows for each in planned):,} rows of finished jobs")
