"""`trainwire retention`: shows the checkpoints or rows that the next retention run would delete."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Final

import typer

from trainwire.cli.commands.options import AsJson, DataDir, servers, write_json
from trainwire.cli.formats import shown_size
from trainwire.cli.terminal import one_line, print_table, say
from trainwire.stack.database import reading, settings_for
from trainwire.stack.errors import Problem, as_problem
from trainwire.stack.locate import Address
from trainwire.workers.checkpoints.surplus import Rule, Surplus, plan, retention_policy
from trainwire.workers.operations import row_retention
from trainwire.workers.settings import Settings


def retention(
    as_json: AsJson = False,
    rows: Annotated[bool, typer.Option("--rows", help="Old log and metric rows instead of checkpoints.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Show the checkpoints, or old rows, that the next retention run would delete. Nothing is deleted now."""
    address = servers(data_dir)
    settings = settings_for(address)
    if rows:
        _show_rows(address, settings, as_json)
        return
    with as_problem(ValueError):
        keeping = retention_policy(settings)
    with reading(address) as connection:
        planned = {rule: plan(connection, keeping, rule) for rule in _SETTINGS}
    if as_json:
        write_json([asdict(each) for files in planned.values() for each in files])
        return
    if any(planned.values()):
        table_rows = [_row(each) for files in planned.values() for each in files]
        print_table(("job", "seq", "kind", "rule", "size", "uri"), table_rows, right={"job", "seq", "size"})
    for rule, files in planned.items():
        count = _sentence(settings, rule, files)
        say(one_line(f"{count} below {keeping.root}{_EXCEPT[rule].format(last=keeping.last)}"))


def _row(file: Surplus) -> tuple[object, ...]:
    size = None if file.size_bytes is None else shown_size(file.size_bytes)
    return (file.job_id, file.seq, file.kind, file.rule, size, file.uri)


def _sentence(settings: Settings, rule: Rule, files: list[Surplus]) -> str:
    name = _SETTINGS[rule]
    choice = getattr(settings, name.lower())
    action = "the next run deletes" if choice == "on" else "nothing is deleted; if on, the next run would delete"
    freed = shown_size(sum(each.size_bytes or 0 for each in files))
    return f"{name}={choice} here: {action} {len(files):,} {_FILES[rule].format(freed=freed)}"


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
        shown = ((each.table, each.job_id, f"{each.rows:,}") for each in planned)
        print_table(("table", "job", "rows"), shown, right={"job", "rows"})
    choice = settings.row_retention
    action = "the next runs remove" if choice == "on" else "nothing is removed; if on, the next runs would remove"
    say(f"ROW_RETENTION={choice} here: {action} {sum(each.rows for each in planned):,} rows of finished jobs")
