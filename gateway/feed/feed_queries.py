"""What the feed reads from Postgres: rows after a `seq`, the newest rows, and how jobs stand."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, TypeAlias

from sqlalchemy import Connection, RowMapping, Select, select

from trainwire.gateway.feed.job_feed import Look
from trainwire.gateway.feed.job_state import Standing
from trainwire.gateway.feed.positions import Position
from trainwire.gateway.feed.rows import MAX_ROWS, Row, Rows, encoded
from trainwire.schemas.events import LogLine, MetricPoint, SavedCheckpoint
from trainwire.schemas.kinds import ROW_KINDS, RowKind
from trainwire.schemas.non_finite import shown_float
from trainwire.schemas.tables import deleted_jobs, training_jobs
from trainwire.schemas.times import to_ns
from trainwire.stores.postgres.columns import MOST_SHOWN_NAMES, job_columns
from trainwire.stores.rows.event_rows import lines_within, log_line, select_lines, values_of

MAX_READ_BYTES: Final = 1024 * 1024
FETCHED_ROWS: Final = 200
SNAPSHOT_ROWS: Final[dict[RowKind, int]] = {"logs": 500, "metrics": 0, "checkpoints": 1000}
"""The points of a chart are a request of their own, which can thin them out."""

LISTED_JOBS: Final = 200


Item: TypeAlias = LogLine | MetricPoint | SavedCheckpoint

_LAST: Final = tuple(storage.last_seq for storage in ROW_KINDS.values())
_MARKED: Final = (
    "attempt",
    "status",
    "status_reason",
    "current_epoch",
    "total_epochs",
    "progress_percent",
    "exit_code",
)
_STATE: Final = tuple(Standing.__struct_fields__)


Mark: TypeAlias = tuple[object, ...]
"""What of a job a list shows and events may have failed to say."""


class UnknownJob(LookupError):  # noqa: N818 - said to clients as it stands
    """No message of this job has been stored."""

    def __init__(self, job_id: int | str) -> None:
        super().__init__(f"no job {job_id} in the database")


class DeletedJob(UnknownJob):
    """The job was deleted."""

    def __init__(self, job_id: int) -> None:
        super().__init__(job_id)
        self.args = (f"job {job_id} was deleted",)


def read_deleted(connection: Connection, job_ids: Collection[int]) -> list[int]:
    """Return those of the jobs that were deleted."""
    tombstones = deleted_jobs.c
    return list(connection.execute(select(tombstones.job_id).where(tombstones.job_id.in_(job_ids))).scalars())


def read_looks(connection: Connection, heard: Mapping[int, int]) -> dict[int, Look]:
    """Return how these jobs stand; `heard` is how much had been heard of each before."""
    jobs = training_jobs.c
    state = job_columns(Standing, training_jobs, MOST_SHOWN_NAMES)
    columns = [jobs.id, *(jobs[name] for name in _LAST), *state]
    found = connection.execute(select(*columns).where(jobs.id.in_(list(heard)))).mappings()
    return {row["id"]: _look(row, heard[row["id"]]) for row in found}


def read_rows(connection: Connection, job_id: int, kind: RowKind, have: int) -> Rows:
    """Return rows of one kind after `have`, up to the next thousand, or less where they are large.

    Where rows end depends on `have` alone, so that clients that are near one another read the same rows.
    """
    upto = min(_last_seq(connection, job_id, kind), (have // MAX_ROWS + 1) * MAX_ROWS)
    seq = ROW_KINDS[kind].table.c.seq
    wanted = _of_job(kind, job_id).where(seq > have, seq <= upto).order_by(seq)
    rows, is_all = _read(connection, kind, wanted)
    return Rows(kind, have, upto if is_all else rows[-1].seq, rows)


def read_newest(connection: Connection, job_id: int, kind: RowKind, last: int) -> list[Row]:
    """Return the newest rows up to `last` as a snapshot has them, oldest first; fewer where they are large."""
    seq = ROW_KINDS[kind].table.c.seq
    wanted = _of_job(kind, job_id).where(seq <= last, seq > last - SNAPSHOT_ROWS[kind]).order_by(seq.desc())
    rows, _ = _read(connection, kind, wanted, newest_first=True)
    return rows[::-1]


def read_marks(connection: Connection) -> dict[int, Mark]:
    """Return the marks of the newest jobs, the newest first."""
    jobs = training_jobs.c
    columns = [jobs.id, jobs.name, *(jobs[name] for name in (*_LAST, *_MARKED))]
    newest = select(*columns).order_by(jobs.created_at.desc(), jobs.id.desc()).limit(LISTED_JOBS)
    return {row[0]: tuple(row) for row in connection.execute(newest)}


def read_look(connection: Connection, job_id: int, heard: int) -> Look:
    """Return how one job stands; raise `UnknownJob`, `DeletedJob` where it was deleted."""
    look = read_looks(connection, {job_id: heard}).get(job_id)
    if look is None:
        raise DeletedJob(job_id) if read_deleted(connection, [job_id]) else UnknownJob(job_id)
    return look


def _last_seq(connection: Connection, job_id: int, kind: RowKind) -> int:
    """Return the last `seq` given to a row; all rows up to it are visible to what is read next."""
    column = training_jobs.c[ROW_KINDS[kind].last_seq]
    return connection.execute(select(column).where(training_jobs.c.id == job_id)).scalar_one_or_none() or 0


def _of_job(kind: RowKind, job_id: int) -> Select[Any]:
    table = ROW_KINDS[kind].table
    return select_lines(job_id) if kind == "logs" else select(table).where(table.c.job_id == job_id)


def _read(
    connection: Connection, kind: RowKind, wanted: Select[Any], *, newest_first: bool = False
) -> tuple[list[Row], bool]:
    """Return rows up to a size, and whether these are all; a client may not make us hold a job's longest lines."""
    rows: list[Row] = []
    size_bytes = 0
    if kind == "logs":
        wanted = lines_within(wanted, MAX_READ_BYTES, newest_first=newest_first)
    with connection.execute(wanted, execution_options={"yield_per": FETCHED_ROWS}) as found:
        for row in found if kind == "logs" else found.mappings():
            if size_bytes >= MAX_READ_BYTES:
                return rows, False
            rows.append(encoded(_MAKE[kind](row)))
            size_bytes += rows[-1].size_bytes
    return rows, size_bytes < MAX_READ_BYTES  # of lines, more may have been left out by the query


def _look(row: RowMapping, heard: int) -> Look:
    state = {name: row[name] for name in _STATE}
    if state["progress_percent"] is not None:
        state["progress_percent"] = shown_float(state["progress_percent"])
    return Look(Position(*(row[name] for name in _LAST)), Standing(**state), heard)


def _point(row: RowMapping) -> MetricPoint:
    return MetricPoint(
        seq=row["seq"],
        attempt=row["attempt"],
        ts=to_ns(row["logged_at"]),
        values=values_of(row),
        epoch=row["epoch"],
        step=row["step"],
        rank=row["rank"],
    )


def _checkpoint(row: RowMapping) -> SavedCheckpoint:
    return SavedCheckpoint(
        seq=row["seq"],
        attempt=row["attempt"],
        ts=to_ns(row["logged_at"]),
        checkpoint_kind=row["kind"],
        uri=row["uri"],
        is_best=row["is_best"],
        epoch=row["epoch"],
        step=row["step"],
        size_bytes=row["size_bytes"],
        sha256=row["sha256"],
        metrics=row["metrics"],
    )


_MAKE: Final[dict[RowKind, Callable[[Any], Item]]] = {
    "logs": log_line,
    "metrics": _point,
    "checkpoints": _checkpoint,
}
