"""`trainwire verify --sink loki`: each line in Loki is compared with its row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sqlalchemy import Connection, select

from schemas.tables import dead_letters, training_jobs
from stores.jobs import removed_rows
from stores.loki import lines_in_loki, without_newer
from stores.loki_config import hidden_after, shown_config
from stores.loki_http import LokiHttp, LokiUnavailable, loki_http
from workers.cursors import read_cursors
from workers.settings import Settings
from workers.sinks.base import SinkUnavailable
from workers.sinks.loki.backlog import read_rows
from workers.sinks.loki.comparison import Comparison, compare
from workers.sinks.loki.rows import LogRow
from workers.sinks.loki.sink import LokiSink
from workers.sinks.plugin import Verdict
from workers.sinks.row_sums import Ranges, count

BATCH_BYTES: Final = 16 * 1024 * 1024
BATCH_ROWS: Final = 1000
HIDDEN: Final = (
    "This Loki finds a line that came over {} late half an hour after its delivery: "
    "where those missing may be such, verify again before a replay"
)


def verify(settings: Settings, connection: Connection, job_id: int) -> Verdict:
    """Return where the job's lines differ from its rows. Raises `SinkUnavailable` where Loki cannot be read."""
    try:
        http = loki_http(settings)
        found = _compared(connection, http, job_id)
        age = hidden_after(shown_config(http) or "") if found.missing else None
    except LokiUnavailable as exc:
        raise SinkUnavailable(f"{exc}; LOKI_URL is {settings.loki_url}") from exc
    lines = [found.line, *found.differences, *([] if age is None else [HIDDEN.format(age)])]
    return Verdict(found.is_verified, lines, {**_document(found), "hidden_after": age})


def _last_seq(connection: Connection, job_id: int) -> int:
    last_seq = select(training_jobs.c.last_log_seq).where(training_jobs.c.id == job_id)
    return connection.execute(last_seq).scalar_one_or_none() or 0


def _compared(connection: Connection, http: LokiHttp, job_id: int) -> Comparison:
    # In this order the job may go on meanwhile: what the cursor has passed is in Loki, whenever Loki is asked.
    confirmed_seq = read_cursors(connection, LokiSink.name, [job_id])[job_id].confirmed_seq
    last_seq = _last_seq(connection, job_id)
    refused = select(dead_letters.c.seq).where(
        dead_letters.c.stream == f"sink:{LokiSink.name}", dead_letters.c.job_id == job_id
    )
    lines = lines_in_loki(connection, http, job_id)
    return compare(
        _rows(connection, job_id, last_seq),
        without_newer(lines, last_seq, lambda: _last_seq(connection, job_id)),
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
