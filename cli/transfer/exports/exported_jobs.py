"""Reads the rows of a job for an export page by page, so that memory use does not grow with the job."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, select

from trainwire.schemas.events import LogLine
from trainwire.schemas.tables import training_checkpoints
from trainwire.stores.postgres.jobs.job_lookup import Job
from trainwire.stores.rows.command_rows import StoredPoint, logs_after, metrics_after
from trainwire.stores.rows.log_pages import LineFilter

PAGE: Final = 2000
CHECKPOINT_COLUMNS: Final = (
    *("seq", "attempt", "logged_at", "kind", "uri", "epoch", "step", "size_bytes", "sha256", "is_best", "metrics"),
)


@dataclass
class ExportedJob:
    """A job to export, and the numbers of its items that were read so far.

    `points` counts metric values, `lines` and `checkpoints` count rows.
    """

    connection: Connection
    job: Job
    points: int = 0
    lines: int = 0
    checkpoints: int = 0
    rows: int = 0
    """Number of metric and log rows that have been read so far."""
    on_page: Callable[[], None] = lambda: None
    """Function that is called after each page of rows."""

    def read_points(self) -> Iterator[StoredPoint]:
        """Yield all metric rows, in the order of `seq`; `points` increases by the number of values in a row."""
        seq = 0
        while page := metrics_after(self.connection, self.job.id, seq, PAGE):
            for row in page:
                self.points += len(row.values)
                yield row
            seq = page[-1].seq
            self._count(page)

    def read_lines(self) -> Iterator[LogLine]:
        """Yield all log lines, in the order of `seq`."""
        seq = 0
        while page := logs_after(self.connection, LineFilter(job_id=self.job.id), seq, PAGE):
            self.lines += len(page)
            yield from page
            seq = page[-1].seq
            self._count(page)

    def _count(self, page: Sized) -> None:
        self.rows += len(page)
        self.on_page()

    def read_checkpoints(self) -> Iterator[Mapping[str, Any]]:
        """Yield all checkpoint rows, in the order of `seq`."""
        table = training_checkpoints.c
        wanted = select(*(table[name] for name in CHECKPOINT_COLUMNS))
        for row in self.connection.execute(
            wanted.where(table.job_id == self.job.id).order_by(table.seq)
        ).mappings():
            self.checkpoints += 1
            yield dict(row)
