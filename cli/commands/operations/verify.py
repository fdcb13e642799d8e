"""`trainwire verify`: compares a job's rows in a sink with its rows in Postgres."""

from __future__ import annotations

from typing import Final

import typer

from trainwire.cli.commands.operations.deliveries import known_sink
from trainwire.cli.commands.options import AsJson, DataDir, JobReference, Sink, servers, write_json
from trainwire.cli.job_references import named_job
from trainwire.cli.terminal import one_line, say
from trainwire.stack.database import reading, settings_for
from trainwire.stack.errors import Problem, as_problem
from trainwire.workers.sinks.base import SinkUnavailable
from trainwire.workers.sinks.plugin import plugin

EXIT_DIFFERS: Final = 1


def verify(job: JobReference, sink: Sink, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Compare a job's rows in a store with those in Postgres, row by row; exit code 1 if they differ."""
    known_sink(sink)
    address = servers(data_dir)
    with reading(address) as connection:
        job_id = named_job(connection, job).id
        with as_problem(SinkUnavailable):
            found = plugin(sink).verify(settings_for(address), connection, job_id)
    if isinstance(found, str):
        raise Problem(f"{sink} is not verified line by line: {found}")
    if as_json:
        write_json({"job_id": job_id, "sink": sink, **found.document})
    else:
        for line in found.lines:
            say(one_line(line))
    if not found.is_verified:
        raise typer.Exit(EXIT_DIFFERS)
