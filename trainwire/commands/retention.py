"""`trainwire retention`: which checkpoints the next run would delete."""

from __future__ import annotations

from dataclasses import asdict

from trainwire.commands.checkpoints import shown_size
from trainwire.commands.options import AsJson, DataDir, servers, write_json
from trainwire.database import reading, settings_for
from trainwire.errors import Problem
from trainwire.terminal import cell, console, one_line, say, table
from workers.retention import keeping_of, plan


def retention(as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Show which checkpoints the next retention run would delete; deletes nothing itself."""
    address = servers(data_dir)
    settings = settings_for(address)
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
