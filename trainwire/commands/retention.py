"""`trainwire retention`: which checkpoints and rows the next runs would delete."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from trainwire.commands.checkpoints import shown_size
from trainwire.commands.options import AsJson, DataDir, servers, write_json
from trainwire.database import reading, settings_for
from trainwire.errors import Problem
from trainwire.locate import Address
from trainwire.terminal import cell, console, one_line, say, table
from workers import row_retention
from workers.retention import keeping_of, plan
from workers.settings import Settings


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
        keeping = keeping_of(settings)
    except ValueError as exc:
        raise Problem(str(exc)) from exc
    with reading(address) as connection:
        planned = plan(connection, keeping)
    if as_json:
        write_json([asdict(surplus) for surplus in planned])
        return
    if planned:
        shown = table("job", "seq", "kind", "size", "uri", right=frozenset({"job", "seq", "size"}))
        for surplus in planned:
            size = None if surplus.size_bytes is None else shown_size(surplus.size_bytes)
            values = (surplus.job_id, surplus.seq, surplus.kind, size, surplus.uri)
            shown.add_row(*(cell(value) for value in values))
        console().print(shown)
    freed = shown_size(sum(surplus.size_bytes or 0 for surplus in planned))
    choice = settings.checkpoint_retention
    what = (
        "the next run deletes" if choice == "on" else "nothing is deleted; switched on, the next run would delete"
    )
    say(
        one_line(
            f"CHECKPOINT_RETENTION={choice} here: {what} {len(planned):,} checkpoints ({freed}) of finished jobs "
            f"below {keeping.root}; best and last {keeping.last} stay"
        )
    )


def _show_rows(address: Address, settings: Settings, as_json: bool) -> None:
    keepings = row_retention.keepings_of(settings)
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
