"""`trainwire verify`: whether a store has what Postgres has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import typer
from sqlalchemy import Connection, select

from schemas.tables import dead_letters
from stores.jobs import removed_rows
from stores.loki import lines_in_loki, without_newer
from stores.loki_config import hidden_after, shown_config
from stores.loki_http import LokiHttp
from trainwire.commands.deliveries import known_sink
from trainwire.commands.jobs import known_job
from trainwire.commands.options import AsJson, DataDir, JobId, Sink, servers, write_json
from trainwire.database import reading, settings_for
from trainwire.errors import Problem
from trainwire.loki import reading_loki
from trainwire.row_sums import Ranges, count
from trainwire.terminal import one_line, say
from trainwire.verification import Comparison, compare
from workers.cursors import read_cursors
from workers.sinks.loki.backlog import read_rows
from workers.sinks.loki.rows import LogRow
from workers.sinks.loki.sink import LokiSink

BATCH_BYTES: Final = 16 * 1024 * 1024
BATCH_ROWS: Final = 1000
EXIT_DIFFERS: Final = 1
HIDDEN: Final = (
    "This Loki finds a line that came over {} late half an hour after its delivery: "
    "where those missing may be such, verify again before a replay"
)


def verify(job_id: JobId, sink: Sink, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Compare what a store has of a job with what Postgres has, line by line; exit code 1 when they differ."""
    if known_sink(sink) != LokiSink.name:
        raise Problem(f"only loki is verified line by line: for {sink} see `trainwire mlflow {job_id}`")
    address = servers(data_dir)
    with reading(address) as connection, reading_loki(settings_for(address)) as http:
        found = _compared(connection, http, job_id, sink)
        age = hidden_after(shown_config(http) or "") if found.missing else None
    if as_json:
        write_json({"job_id": job_id, "sink": sink, **_document(found), "hidden_after": age})
    else:
        for line in (found.line, *found.differences, *([] if age is None else [HIDDEN.format(age)])):
            say(one_line(line))
    if not found.is_verified:
        raise typer.Exit(EXIT_DIFFERS)


def _compared(connection: Connection, http: LokiHttp, job_id: int, sink: str) -> Comparison:
    # In this order the job may go on meanwhile: what the cursor has passed is in Loki, whenever Loki is asked.
    confirmed_seq = read_cursors(connection, sink, [job_id])[job_id].confirmed_seq
    last_seq = known_job(connection, job_id).last_log_seq
    refused = select(dead_letters.c.seq).where(
        dead_letters.c.stream == f"sink:{sink}", dead_letters.c.job_id == job_id
    )
    lines = lines_in_loki(connection, http, job_id)
    return compare(
        _rows(connection, job_id, last_seq),
        without_newer(lines, last_seq, lambda: known_job(connection, job_id).last_log_seq),
        last_seq=last_seq,
        removed_seq=lambda: removed_rows(connection, job_id)["logs"],
        confirmed_seq=confirmed_seq,
        dead_lettered=set(connection.execute(refused).scalars()),
    )


def _rows(connection: Connection, job_id: int, last_seq: int) -> Iterator[LogRow]:
    after = 0
    while after < last_seq and (batch := read_rows(connection, job_id, after, BATCH_ROWS, BATCH_BYTES)):
        yield from (row for row in batch if row.seq <= last_seq)
        after = batch[-1].seq


def _document(found: Comparison) -> dict[str, object]:
    return {
        "verified": found.is_verified,
        "line": found.line,
        "in_postgres": found.in_postgres,
        "in_loki": found.in_loki,
        "dead_lettered": found.dead_lettered,
        "waiting": found.waiting,
        "missing": _counted(found.missing),
        "twice": _counted(found.twice),
        "different": _counted(found.different),
        "not_in_postgres": _counted(found.unknown),
        "without_number": found.unnumbered,
        "lost_from_postgres": _counted(found.lost),
        "removed_by_retention": {
            "count": found.removed.rows,
            "in_loki": found.removed.in_loki,
            "dead_lettered": found.removed.dead_lettered,
            "not_in_loki": _counted(found.removed.gone),
        },
    }


def _counted(ranges: Ranges) -> dict[str, object]:
    return {"count": count(ranges), "ranges": ranges}
