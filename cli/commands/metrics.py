"""`trainwire metrics`: the newest metric points of a job."""

from __future__ import annotations

from typing import Annotated

from trainwire.cli.commands.jobs import known_job, shown_number
from trainwire.cli.commands.options import AsJson, DataDir, JobReference, servers, write_json
from trainwire.cli.job_references import job_id_of
from trainwire.cli.numbers import MOST_SHOWN, whole_option
from trainwire.cli.terminal import cell, print_table, say, warn
from trainwire.schemas.tables import LIFTED
from trainwire.stack.database import reading
from trainwire.stores.postgres.jobs import removed_rows
from trainwire.stores.rows.command_rows import StoredPoint, newest_metrics

SHOWN_EXTRAS = 12
"""Most metrics beside the lifted ones that the table shows; --json has all."""


def metrics(
    job: JobReference,
    as_json: AsJson = False,
    limit: Annotated[int, whole_option(1, MOST_SHOWN, "Number of newest points.")] = 500,
    data_dir: DataDir = None,
) -> None:
    """Print a job's newest metric points, oldest first."""
    with reading(servers(data_dir)) as connection:
        job_id = known_job(connection, job_id_of(connection, job)).id
        rows = newest_metrics(connection, job_id, limit)
        removed = removed_rows(connection, job_id)["metrics"]
    if as_json:
        write_json(rows)
    elif rows:
        _show_table(rows)
    elif not removed:
        say(f"no metrics of job {job_id} yet")
    if removed and len(rows) < limit:
        warn(f"points 1 to {removed:,} of job {job_id} were removed by retention")


def _show_table(rows: list[StoredPoint]) -> None:
    extras = list(dict.fromkeys(name for row in rows for name in row.values if name not in LIFTED))
    names = [*LIFTED, *extras[:SHOWN_EXTRAS]]
    headers = [cell(name) for name in names]
    shown = ((row.epoch, row.step, *(shown_number(row.values.get(name, "")) for name in names)) for row in rows)
    print_table(("epoch", "step", *headers), shown, right={str(header) for header in headers})
    if len(extras) > SHOWN_EXTRAS:
        say(f"and {len(extras) - SHOWN_EXTRAS} more metrics: see --json")
