"""Reads the next log rows to write to files, and finds rows that were removed from the newest file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
from sqlalchemy import Connection, Row, text

from trainwire.workers.sinks.base import Delivered
from trainwire.workers.sinks.cursors import DeliveryCursor, read_cursors
from trainwire.workers.sinks.jsonl.files import JsonLine, Tail, first_lost
from trainwire.workers.sinks.plugin import SinkBacklog

log = structlog.get_logger("trainwire.workers.sinks.jsonl")

NAME: Final = "jsonl"


@dataclass(frozen=True, slots=True)
class JsonlBatch:
    """The next lines to append to the files of a job.

    If there are no lines, all rows up to `last_seq` were deleted from Postgres. `note` states, for operators,
    which rows were last written again because they had been removed from the newest file; None if there are none.
    """

    confirmed_seq: int
    folder: str
    lines: Sequence[JsonLine]
    last_seq: int
    note: str | None = None
    is_followed: bool = False


@dataclass(slots=True)
class JsonlDelivered(Delivered):
    """The result of a delivery to files: `tail` is the newest file, `note` that of `JsonlBatch`."""

    tail: Tail | None = None
    note: str | None = None

    @property
    def state(self) -> Mapping[str, Any]:
        """The newest file and the note, in the form in which the cursor of the job stores them."""
        tail = {} if self.tail is None else {"tail": self.tail}
        return tail if self.note is None else tail | {"note": self.note}


class JsonlBacklog(SinkBacklog[JsonlBatch, Delivered]):
    """Reads log rows that are not in the files yet, and rows that were removed from a job's newest file.

    `root` is the folder that contains one folder per job.
    """

    kind = "logs"

    def __init__(self, sink: str, root: Path) -> None:
        super().__init__(sink)
        self._root = root

    def read(
        self, connection: Connection, job_ids: Sequence[int], most_rows: int, most_bytes: int
    ) -> dict[int, JsonlBatch]:
        """Return the next lines of each job; for the limits see `SinkBacklog.read`.

        If a job has new rows, those that were removed from its newest file come first. Other jobs are omitted.
        """
        last_seqs = self.last_seqs(connection, job_ids)
        folders = {row.id: folder_name(*row) for row in connection.execute(JOBS, {"jobs": list(job_ids)})}
        known = read_cursors(connection, NAME, job_ids)
        after = {job_id: cursor.confirmed_seq for job_id, cursor in known.items()}
        lines = read_rows(connection, after, most_rows, most_bytes)
        notes = {job_id: cursor.state.get("note") for job_id, cursor in known.items()}
        lost = {
            job_id: first
            for job_id, folder in folders.items()
            if lines[job_id] and (first := self._first_lost(folder, known[job_id], lines[job_id][0].day))
        }
        for job_id, first in lost.items():
            file, last = known[job_id].state["tail"][0], after[job_id]
            log.warning("jsonl.rows_lost", job_id=job_id, file=file, first_seq=first, last_seq=last)
            at = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
            notes[job_id] = f"{file} had lost rows {first} to {last}, which were written again at {at}"
            after[job_id] = first - 1
        if lost:
            lines |= read_rows(connection, {job_id: after[job_id] for job_id in lost}, most_rows, most_bytes)
        return {
            job_id: JsonlBatch(after[job_id], folder, lines[job_id], last_seqs[job_id], notes[job_id])
            for job_id, folder in folders.items()
            if last_seqs.get(job_id, 0) > after[job_id]
        }

    def _first_lost(self, folder: str, cursor: DeliveryCursor, next_day: str) -> int | None:
        """Return `seq` of the first row that was removed from the newest file of a job; None if none is known."""
        if "tail" not in cursor.state:  # the cursor was written by an older version, or moved by a replay
            return None
        try:
            first = first_lost(self._root / folder, Tail(*cursor.state["tail"]), next_day)
        except OSError:
            return None  # the delivery will fail too, and report it
        return first if first is not None and first <= cursor.confirmed_seq else None


def folder_name(job_id: int, created_at: datetime) -> str:
    """Return the name of a job's folder.

    It contains the time at which the job was created, which distinguishes jobs with the same number in other
    databases.
    """
    return f"{job_id}-{created_at.astimezone(UTC):%Y%m%dT%H%M%SZ}"


def read_rows(
    connection: Connection, after: dict[int, int], most_rows: int, most_bytes: int
) -> dict[int, list[JsonLine]]:
    """Return the next lines of each job; `after` is the `seq` of the last row before them, by job.

    For the limits see `SinkBacklog.read`.
    """
    limits = {"most_rows": most_rows, "most_bytes": most_bytes}
    lines: dict[int, list[JsonLine]] = defaultdict(list)
    for row in connection.execute(_READ, {"jobs": list(after), "after": list(after.values()), **limits}):
        lines[row.job_id].append(JsonLine(row.seq, row.day, _json_line(row)))
    return lines


def _json_line(row: Row[Any]) -> bytes:
    return msgspec.json.encode(dict(zip(_FIELDS, row, strict=False))) + b"\n"


_FIELDS: Final = (*("job_id", "seq", "attempt", "rank", "source", "log_type", "level", "logged_at", "content"),)
"""The keys of a JSON line, in the order of the columns that `_READ` selects."""
JOBS: Final = text("SELECT id, created_at FROM training_jobs WHERE id = ANY(:jobs)")
_READ: Final = text(
    """
    SELECT wanted.job_id, seq, attempt, rank, source, log_type, level,
        to_char(logged_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US')
            || lpad(CAST(logged_ns AS text), 3, '0') || 'Z' AS logged_at,
        content, to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD') AS day
    FROM unnest(CAST(:jobs AS bigint[]), CAST(:after AS bigint[])) AS wanted(job_id, after)
    CROSS JOIN LATERAL (
        SELECT *, sum(octet_length(content)) OVER (ORDER BY seq) - octet_length(content) AS bytes_before
        FROM (
            SELECT * FROM training_logs WHERE job_id = wanted.job_id AND seq > wanted.after
            ORDER BY seq LIMIT :most_rows
        ) AS next_rows
    ) AS measured
    WHERE bytes_before < :most_bytes ORDER BY wanted.job_id, seq
    """
)
