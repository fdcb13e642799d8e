"""`trainwire verify`: whether a store has what Postgres has."""

from __future__ import annotations

from typing import Final

import typer

from stores.loki_config import hidden_after, shown_config
from trainwire.commands.deliveries import known_sink
from trainwire.commands.jobs import known_job
from trainwire.commands.options import AsJson, DataDir, JobId, Sink, servers, write_json
from trainwire.database import reading, settings_for
from trainwire.errors import Problem
from trainwire.loki import reading_loki
from trainwire.terminal import one_line, say
from trainwire.verification import verify_loki
from workers.sinks.loki import LokiSink

EXIT_DIFFERS: Final = 1
HIDDEN: Final = (
    "This Loki finds a line that came over {} late half an hour after its delivery: "
    "where those missing may be such, verify again before a replay"
)


def verify(job_id: JobId, sink: Sink, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Check that a store has each line of a job once, by their numbers; exit code 1 when it does not."""
    if known_sink(sink) != LokiSink.name:
        raise Problem(f"only loki is verified line by line: for {sink} see `trainwire mlflow {job_id}`")
    address = servers(data_dir)
    with reading(address) as connection, reading_loki(settings_for(address)) as http:
        known_job(connection, job_id)
        found = verify_loki(connection, http, job_id)
        age = hidden_after(shown_config(http) or "") if found.missing else None
    if as_json:
        write_json({"job_id": job_id, "sink": sink, **found.document, "hidden_after": age})
    else:
        for line in (found.line, *found.differences, *([] if age is None else [HIDDEN.format(age)])):
            say(one_line(line))
    if not found.is_verified:
        raise typer.Exit(EXIT_DIFFERS)
