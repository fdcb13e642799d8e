"""SQL queries of the live feed: rows after a `seq`, the newest rows, and the rows of training_jobs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, TypeAlias

from sqlalchemy import Connection, RowMapping, Select, select

from trainwire.gateway.feed.feed_rows import MAX_ROWS, FeedPosition, Row, RowBatch, encode_row
from trainwire.gateway.feed.feed_state import FeedState
from trainwire.gateway.feed.job_feed import JobRow
from trainwire.schemas.events import LogLine, MetricPoint, SavedCheckpoint
from trainwire.schemas.non_finite import shown_float
from trainwire.schemas.tables import deleted_jobs, training_jobs
from trainwire.schemas.tables.kinds import ROW_KINDS, RowKind
from trainwire.schemas.times import to_ns
from trainwire.stores.postgres.columns import MOST_SHOWN_NAMES, job_columns
from trainwire.stores.rows.event_rows import lines_within, log_line, select_lines, values_of

MAX_READ_BYTES: Final = 1024 * 1024
FETCHED_ROWS: Final = 200
SNAPSHOT_ROWS: Final[dict[RowKind, int]] = {"logs": 500, "metrics": 0, "checkpoints": 1000}
"""Number of newest rows of each kind in a snapshot.

It has no metrics: clients request them from `/jobs/{id}/metrics`, which can downsample them.
"""
LISTED_JOBS: Final = 200

_LAST_SEQS: Final = tuple(storage.last_seq for storage in ROW_KINDS.values())
_PROGRESS: Final = ("current_epoch", "total_epochs", "progress_percent")
_EDITED: Final = ("name", "given_name", "given_tags", "note", "archived_at")
_LISTED: Final = (*_EDITED, *_LAST_SEQS, "attempt", "status", "status_reason", *_PROGRESS, "exit_code")

ListedColumns: TypeAlias = tuple[object, ...]
"""Values of a job's columns in the list of all jobs; compared to detect that the job has changed."""


class JobNotFound(LookupError):  # noqa: N818 - its text is sent to clients
    """The job does not exist: no message of it has been stored."""

    def __init__(self, job_id: int | str) -> None:
        super().__init__(f"no job {job_id} in the database")


class JobDeleted(JobNotFound):
    """The job was deleted, so it does not exist any more."""

    def __init__(self, job_id: int) -> None:
        super().__init__(job_id)
        self.args = (f"job {job_id} was deleted",)


def read_deleted(connection: Connection, job_ids: Collection[int]) -> list[int]:
    """Return those of `job_ids` that belong to deleted jobs."""
    tombstones = deleted_jobs.c
    return list(connection.execute(select(tombstones.job_id).where(tombstones.job_id.in_(job_ids))).scalars())


def read_job_rows(connection: Connection, state_events: Mapping[int, int]) -> dict[int, JobRow]:
    """Return job id -> row of training_jobs, for the jobs in `state_events` that exist.

    `state_events` has, for each job, the number of events received so far that report the job's state. It is
    copied into the result.
    """
    jobs = training_jobs.c
    state = job_columns(FeedState, training_jobs, MOST_SHOWN_NAMES)
    columns = [jobs.id, *(jobs[name] for name in _LAST_SEQS), *state]
    found = connection.execute(select(*columns).where(jobs.id.in_(list(state_events)))).mappings()
    return {row["id"]: _job_row(row, state_events[row["id"]]) for row in found}


def read_job_row(connection: Connection, job_id: int, state_events: int) -> JobRow:
    """Return one job's row of training_jobs; raise `JobNotFound`, or `JobDeleted` if it was deleted.

    `state_events` is copied into the result (see `read_job_rows`).
    """
    row = read_job_rows(connection, {job_id: state_events}).get(job_id)
    if row is None:
        raise JobDeleted(job_id) if read_deleted(connection, [job_id]) else JobNotFound(job_id)
    return row


def read_rows(connection: Connection, job_id: int, kind: RowKind, after: int) -> RowBatch:
    """Return the rows of one kind with `seq` > `after`, up to the next multiple of `MAX_ROWS`.

    The batch is shorter if its rows are large. Because batches end at such multiples, clients at nearby positions
    soon read the same batches, and can share them.
    """
    column = training_jobs.c[ROW_KINDS[kind].last_seq]
    # Read first: all rows up to this `seq` are visible to the next query.
    stored = connection.execute(select(column).where(training_jobs.c.id == job_id)).scalar_one_or_none() or 0
    last = min(stored, (after // MAX_ROWS + 1) * MAX_ROWS)
    seq = ROW_KINDS[kind].table.c.seq
    query = _rows_of_job(kind, job_id).where(seq > after, seq <= last).order_by(seq)
    rows, is_all = _read(connection, kind, query)
    return RowBatch(kind, after, last if is_all else rows[-1].seq, rows)


def read_newest(connection: Connection, job_id: int, kind: RowKind, last: int) -> list[Row]:
    """Return the newest rows of one kind up to `last` for a snapshot, oldest first.

    There are at most `SNAPSHOT_ROWS[kind]`, and fewer if they exceed MAX_READ_BYTES.
    """
    seq = ROW_KINDS[kind].table.c.seq
    query = _rows_of_job(kind, job_id).where(seq <= last, seq > last - SNAPSHOT_ROWS[kind]).order_by(seq.desc())
    rows, _ = _read(connection, kind, query, newest_first=True)
    return rows[::-1]


def read_listed(connection: Connection) -> dict[int, ListedColumns]:
    """Return, by job id, the columns that the list of all jobs compares to detect changes.

    Only the newest `LISTED_JOBS` jobs are read, including archived ones; the newest one comes first.
    """
    jobs = training_jobs.c
    columns = [jobs.id, *(jobs[name] for name in _LISTED)]
    newest = select(*columns).order_by(jobs.created_at.desc(), jobs.id.desc()).limit(LISTED_JOBS)
    return {row[0]: tuple(row) for row in connection.execute(newest)}


def _rows_of_job(kind: RowKind, job_id: int) -> Select[Any]:
    table = ROW_KINDS[kind].table
    return select_lines(job_id) if kind == "logs" else select(table).where(table.c.job_id == job_id)


def _read(
    connection: Connection, kind: RowKind, query: Select[Any], *, newest_first: bool = False
) -> tuple[list[Row], bool]:
    """Return the rows of a query until they reach `MAX_READ_BYTES`, and whether these are all of its rows.

    `newest_first` must be True if the query has this order.
    """
    rows: list[Row] = []
    size_bytes = 0
    if kind == "logs":
        query = lines_within(query, MAX_READ_BYTES, newest_first=newest_first)
    with connection.execute(query, execution_options={"yield_per": FETCHED_ROWS}) as found:
        for row in found if kind == "logs" else found.mappings():
            if size_bytes >= MAX_READ_BYTES:
                return rows, False
            rows.append(encode_row(_MAKE[kind](row)))
            size_bytes += rows[-1].size_bytes
    return rows, size_bytes < MAX_READ_BYTES  # the query itself stops at this size of lines


def _job_row(row: RowMapping, state_events: int) -> JobRow:
    state = {name: row[name] for name in FeedState.__struct_fields__}
    if state["progress_percent"] is not None:
        state["progress_percent"] = shown_float(state["progress_percent"])
    return JobRow(FeedPosition(*(row[name] for name in _LAST_SEQS)), FeedState(**state), state_events)


def _point(row: RowMapping) -> MetricPoint:
    same = {name: row[name] for name in ("seq", "attempt", "epoch", "step", "rank")}
    return MetricPoint(ts=to_ns(row["logged_at"]), values=values_of(row), **same)


def _checkpoint(row: RowMapping) -> SavedCheckpoint:
    names = ("seq", "attempt", "uri", "is_best", "epoch", "step", "size_bytes", "sha256", "metrics")
    same = {name: row[name] for name in names}
    return SavedCheckpoint(ts=to_ns(row["logged_at"]), checkpoint_kind=row["kind"], **same)


_MAKE: Final[dict[RowKind, Callable[[Any], LogLine | MetricPoint | SavedCheckpoint]]] = {
    "logs": log_line,
    "metrics": _point,
    "checkpoints": _checkpoint,
}
