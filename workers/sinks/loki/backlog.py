"""Reads the next log rows for Loki: packed by Postgres into the JSON of a push request, or as single rows."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Final

from sqlalchemy import Connection, Engine, text

from trainwire.stores.loki.config import MAX_AHEAD_NS, MAX_FUTURE_NS
from trainwire.workers.sinks import cursors
from trainwire.workers.sinks.cursors import DeliveryCursor
from trainwire.workers.sinks.loki.entries import (
    ENTRY_OVERHEAD_BYTES,
    MAX_LEVEL_CHARS,
    MAX_LINE_BYTES,
    MAX_PUSH_BYTES,
    WINDOW_NS,
    DeliveredLines,
    LogBatch,
    LogRow,
    PackedLines,
    newest_after,
)
from trainwire.workers.sinks.plugin import SinkBacklog


class LogBacklog(SinkBacklog[LogBatch, DeliveredLines]):
    """Reads the log rows that Loki has not confirmed.

    The state of a cursor is the newest time that was sent to Loki, by log type.
    """

    kind = "logs"

    def __init__(self, engine: Engine, sink: str) -> None:
        super().__init__(sink)
        self._engine = engine

    def read(
        self, connection: Connection, job_ids: Sequence[int], most_rows: int, most_bytes: int
    ) -> dict[int, LogBatch]:
        """Return the next rows of each job, grouped into windows of time; for the limits see `SinkBacklog.read`.

        A window is short enough that Loki normally accepts its rows of one log type in one stream, in any order.
        Jobs whose rows are all confirmed are omitted; one whose remaining rows were deleted has no windows.
        """
        return self._read(connection, cursors.read_cursors(connection, self._sink, job_ids), most_rows, most_bytes)

    def read_on(
        self, connection: Connection, batches: Mapping[int, LogBatch], most_rows: int, most_bytes: int
    ) -> dict[int, LogBatch]:
        """Return the rows that follow `batches`, as `read` would if these were delivered without a refused row."""
        return self._read(
            connection, {job_id: _cursor_after(batch) for job_id, batch in batches.items()}, most_rows, most_bytes
        )

    def _read(
        self, connection: Connection, after: Mapping[int, DeliveryCursor], most_rows: int, most_bytes: int
    ) -> dict[int, LogBatch]:
        last_seqs = self.last_seqs(connection, list(after))
        windows: dict[int, dict[int, list[PackedLines]]] = defaultdict(lambda: defaultdict(list))
        wanted = {
            "jobs": list(after),
            "after": [cursor.confirmed_seq for cursor in after.values()],
            "newest": [max(cursor.state.values(), default=0) for cursor in after.values()],
            "most_rows": most_rows,
            "most_bytes": most_bytes,
            "latest": time.time_ns() + MAX_FUTURE_NS,
            "window": WINDOW_NS,
            "entry_bytes": ENTRY_OVERHEAD_BYTES,
            "push_bytes": MAX_PUSH_BYTES - MAX_LINE_BYTES,
            "level_chars": MAX_LEVEL_CHARS,
        }
        # Sorted here: in Postgres the sort of the large packs would spill to disk.
        for job_id, window, *pack in sorted(connection.execute(_READ_PACKED, wanted), key=_LAST_SEQ):
            windows[job_id][window].append(PackedLines(*pack))
        return {
            job_id: LogBatch(
                cursor.confirmed_seq,
                cursor.state,
                list(windows[job_id].values()),
                partial(self._rows, job_id, most_bytes),
                last_seqs.get(job_id, 0),
            )
            for job_id, cursor in after.items()
            if job_id in windows or last_seqs.get(job_id, 0) > cursor.confirmed_seq
        }

    def _rows(self, job_id: int, most_bytes: int, after: int, last_seq: int) -> Sequence[LogRow]:
        with self._engine.begin() as connection:
            rows = read_rows(connection, job_id, after, last_seq - after, most_bytes)
        return [row for row in rows if row.seq <= last_seq]


def _cursor_after(batch: LogBatch) -> DeliveryCursor:
    packs = [pack for packs in batch.windows for pack in packs]
    return DeliveryCursor(packs[-1].last_seq, newest_after(packs, batch.newest_ns))


def read_rows(connection: Connection, job_id: int, after: int, most_rows: int, most_bytes: int) -> list[LogRow]:
    """Return a job's log rows after the row `after`: at most `most_rows`, up to the row that reaches `most_bytes`.

    Returns an empty list if there are none.
    """
    wanted = {"job_id": job_id, "after": after, "most_rows": most_rows, "most_bytes": most_bytes}
    return [LogRow(*row) for row in connection.execute(_READ_ROWS, wanted)]


_LAST_SEQ: Final = itemgetter(3)

_TS_NS: Final = """
    -- Within these two centuries a double holds microseconds exactly; Loki refuses times outside of them.
    CASE WHEN logged_at < '1900-01-01' THEN 0 WHEN logged_at >= '2100-01-01' THEN 9223372036854775807
    ELSE CAST(date_part('epoch', logged_at) * 1000000 AS bigint) * 1000 + logged_ns END
"""
_LATEST_NS: Final = f"""
    -- Depends on the row only, so that a resend is identical; `+ seq` keeps the order.
    CAST(date_part('epoch', created_at) * 1000000 AS bigint) * 1000 + {MAX_AHEAD_NS} + seq
"""
_SENT: Final = """
    least(logged, latest) AS ts_ns,
    CASE WHEN logged > latest THEN to_char(logged_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US')
        || lpad(CAST(logged_ns AS text), 3, '0') || 'Z' END AS trainers_time
"""
"""SQL for the time to send and, if it differs, the trainer's own time; uses the columns `logged` and `latest`."""

_READ_ROWS: Final = text(
    f"""
    SELECT seq, attempt, rank, source, log_type, level, ts_ns, content, trainers_time
    FROM (
        SELECT *, {_SENT}, sum(octet_length(content)) OVER (ORDER BY seq) - octet_length(content) AS before
        FROM (
            SELECT *, {_TS_NS} AS logged, {_LATEST_NS} AS latest FROM training_logs
            WHERE job_id = :job_id AND seq > :after ORDER BY seq LIMIT :most_rows
        ) AS next_rows
    ) AS measured
    WHERE before < :most_bytes ORDER BY seq
    """  # noqa: S608 - our own expression
)

_READ_PACKED: Final = text(
    f"""
    SELECT wanted.job_id, packs.*
    FROM unnest(CAST(:jobs AS bigint[]), CAST(:after AS bigint[]), CAST(:newest AS bigint[]))
        AS wanted(job_id, after, newest)
    CROSS JOIN LATERAL (
        SELECT newest_so_far / :window, log_type, max(seq), min(ts_ns), max(ts_ns), max(bytes), string_agg(
            '["' || ts_ns || '",' || to_json(content) || ',{{"seq":"' || seq || '","attempt":"' || attempt || '"'
                || coalesce(',"rank":"' || rank || '"', '')
                || coalesce(',"level":' || to_json(left(level, :level_chars)), '')
                || coalesce(',"logged_at":"' || trainers_time || '"', '') || '}}]',
            ',' ORDER BY seq
        )
        FROM (
            SELECT *, sum(bytes + :entry_bytes) OVER up_to_here AS size,
                greatest(max(sane_ns) OVER up_to_here, newest) AS newest_so_far
            FROM (
                SELECT *, {_SENT}, CASE WHEN least(logged, latest) <= :latest THEN least(logged, latest) ELSE 0 END
                    AS sane_ns
                FROM (
                    SELECT seq, attempt, rank, log_type, level, content, octet_length(content) AS bytes,
                        logged_at, logged_ns, {_TS_NS} AS logged, {_LATEST_NS} AS latest
                    FROM training_logs
                    WHERE job_id = wanted.job_id AND seq > wanted.after ORDER BY seq LIMIT :most_rows
                ) AS next_rows
            ) AS timed
            WINDOW up_to_here AS (ORDER BY seq ROWS UNBOUNDED PRECEDING)
        ) AS measured
        WHERE size - bytes - :entry_bytes < :most_bytes
        GROUP BY newest_so_far / :window, log_type, size / :push_bytes
    ) AS packs
    """  # noqa: S608 - our own expression
)
