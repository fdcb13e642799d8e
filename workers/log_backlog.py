"""The log rows that wait for Loki: packed by Postgres into the JSON of a push, or row by row."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from sqlalchemy import Connection, Engine, text

from workers import cursors
from workers.sinks.log_rows import DeliveredLines, LogBatch, LogRow, PackedLines
from workers.sinks.loki_lines import (
    ENTRY_OVERHEAD_BYTES,
    LATE_AFTER_NS,
    MAX_FUTURE_NS,
    MAX_LEVEL_CHARS,
    MAX_LINE_BYTES,
    MAX_PUSH_BYTES,
)


class LogBacklog:
    """What Loki has not confirmed."""

    def __init__(self, engine: Engine, sink: str) -> None:
        self._engine = engine
        self._sink = sink

    def jobs_behind(self, connection: Connection, limit: int) -> list[int]:
        """Return jobs that have log rows after the sink's cursor, those that were moved longest ago first."""
        return list(connection.execute(_JOBS_BEHIND, {"sink": self._sink, "limit": limit}).scalars())

    def read(
        self, connection: Connection, job_ids: Sequence[int], most_rows: int, most_bytes: int
    ) -> dict[int, LogBatch]:
        """Return the next rows of each job, as many as the window of a stream takes at once."""
        # Before the rows: where then none is found up to here, they are gone, not too late to be seen.
        last_seqs = {row.id: row.last_log_seq for row in connection.execute(_LAST_SEQS, {"jobs": list(job_ids)})}
        known = cursors.read_cursors(connection, self._sink, job_ids)
        packs: dict[int, list[PackedLines]] = defaultdict(list)
        wanted = {
            "jobs": list(known),
            "after": [cursor.confirmed_seq for cursor in known.values()],
            "newest": [max(cursor.newest_ns.values(), default=0) for cursor in known.values()],
            "most_rows": most_rows,
            "most_bytes": most_bytes,
            "latest": time.time_ns() + MAX_FUTURE_NS,
            "span": LATE_AFTER_NS,
            "entry_bytes": ENTRY_OVERHEAD_BYTES,
            "push_bytes": MAX_PUSH_BYTES - MAX_LINE_BYTES,
            "level_chars": MAX_LEVEL_CHARS,
        }
        for job_id, *pack in connection.execute(_READ_PACKED, wanted):
            packs[job_id].append(PackedLines(*pack))
        return {
            job_id: LogBatch(
                cursor.newest_ns,
                packs[job_id],
                partial(self._rows, job_id, cursor.confirmed_seq, most_rows, most_bytes),
                last_seqs.get(job_id, 0),
            )
            for job_id, cursor in known.items()
            if job_id in packs or last_seqs.get(job_id, 0) > cursor.confirmed_seq
        }

    def confirm(self, connection: Connection, delivered: Mapping[int, DeliveredLines]) -> None:
        """Move the cursors to what Loki has proven to have, and bury what it refused."""
        newest = {job_id: done.newest_ns for job_id, done in delivered.items()}
        cursors.confirm(connection, self._sink, "logs", delivered, newest)

    def _rows(self, job_id: int, after: int, most_rows: int, most_bytes: int) -> Sequence[LogRow]:
        with self._engine.begin() as connection:
            return read_rows(connection, job_id, after, most_rows, most_bytes)


def read_rows(connection: Connection, job_id: int, after: int, most_rows: int, most_bytes: int) -> list[LogRow]:
    """Return a job's log rows after a seq, at most so many rows and bytes, at least one."""
    wanted = {"job_id": job_id, "after": after, "most_rows": most_rows, "most_bytes": most_bytes}
    return [LogRow(*row) for row in connection.execute(_READ_ROWS, wanted)]


_JOBS_BEHIND: Final = text(
    "SELECT id FROM training_jobs LEFT JOIN delivery_cursors ON sink = :sink AND job_id = id "
    "WHERE last_log_seq > coalesce(confirmed_seq, 0) ORDER BY moved_at NULLS FIRST, id LIMIT :limit"
)

_LAST_SEQS: Final = text("SELECT id, last_log_seq FROM training_jobs WHERE id = ANY(:jobs) ORDER BY id")

_TS_NS: Final = """
    -- No sink takes a time outside these two centuries, in which a double holds microseconds exactly.
    CASE WHEN logged_at < '1900-01-01' THEN 0 WHEN logged_at >= '2100-01-01' THEN 9223372036854775807
    ELSE CAST(date_part('epoch', logged_at) * 1000000 AS bigint) * 1000 + logged_ns END
"""

_READ_ROWS: Final = text(
    f"""
    SELECT seq, attempt, rank, source, log_type, level, ts_ns, content
    FROM (
        SELECT *, {_TS_NS} AS ts_ns,
            sum(octet_length(content)) OVER (ORDER BY seq) - octet_length(content) AS before
        FROM (
            SELECT * FROM training_logs WHERE job_id = :job_id AND seq > :after ORDER BY seq LIMIT :most_rows
        ) AS next_rows
    ) AS measured
    WHERE before < :most_bytes ORDER BY seq
    """  # noqa: S608 - our own expression
)

_READ_PACKED: Final = text(
    f"""
    SELECT job_id, packs.*
    FROM unnest(CAST(:jobs AS bigint[]), CAST(:after AS bigint[]), CAST(:newest AS bigint[]))
        AS wanted(job_id, after, newest)
    CROSS JOIN LATERAL (
        SELECT log_type, max(seq) AS last_seq, min(ts_ns), max(ts_ns), max(bytes), string_agg(
            '["' || ts_ns || '",' || to_json(content) || ',{{"seq":"' || seq || '","attempt":"' || attempt || '"'
                || coalesce(',"rank":"' || rank || '"', '')
                || coalesce(',"level":' || to_json(left(level, :level_chars)), '') || '}}]',
            ',' ORDER BY seq
        )
        FROM (
            SELECT *, sum(bytes + :entry_bytes) OVER up_to_here AS size,
                max(sane_ns) OVER up_to_here AS newest_so_far, first_value(sane_ns) OVER up_to_here AS first_ns
            FROM (
                SELECT *, CASE WHEN ts_ns <= :latest THEN ts_ns ELSE 0 END AS sane_ns
                FROM (
                    SELECT seq, attempt, rank, log_type, level, content, octet_length(content) AS bytes,
                        {_TS_NS} AS ts_ns
                    FROM training_logs
                    WHERE job_id = wanted.job_id AND seq > wanted.after ORDER BY seq LIMIT :most_rows
                ) AS next_rows
            ) AS timed
            WINDOW up_to_here AS (ORDER BY seq ROWS UNBOUNDED PRECEDING)
        ) AS measured
        -- Where time has gone on by more than a stream's window the batch ends: it would be split there anyway.
        WHERE size - bytes - :entry_bytes < :most_bytes AND newest_so_far - :span <= greatest(first_ns, newest)
        GROUP BY log_type, size / :push_bytes
    ) AS packs
    ORDER BY job_id, last_seq
    """  # noqa: S608 - our own expression
)
