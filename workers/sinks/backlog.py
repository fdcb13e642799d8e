"""The rows in Postgres that wait for a sink: each sink only adds how its rows are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Generic

from sqlalchemy import Connection, text

from trainwire.schemas.sinks import ROWS, RowKind
from trainwire.workers.sinks import cursors
from trainwire.workers.sinks.base import BatchT, DeliveredT_contra


class SinkBacklog(ABC, Generic[BatchT, DeliveredT_contra]):
    """The rows after the cursors of a sink in `delivery_cursors`."""

    kind: ClassVar[RowKind]
    """The rows that the sink receives."""

    def __init__(self, sink: str) -> None:
        self._sink = sink

    def jobs_behind(self, connection: Connection, limit: int) -> list[int]:
        """Return jobs that have rows after the sink's cursor and are due, those delivered longest ago first."""
        return cursors.jobs_behind(connection, self._sink, self.kind, limit)

    @abstractmethod
    def read(
        self, connection: Connection, job_ids: Sequence[int], most_rows: int, most_bytes: int
    ) -> Mapping[int, BatchT]:
        """Return the next rows of each job: at most so many rows and bytes of each, at least one row."""

    def read_on(
        self, connection: Connection, batches: Mapping[int, BatchT], most_rows: int, most_bytes: int, /
    ) -> Mapping[int, BatchT]:
        """Return the batches that follow these, once they are delivered whole and no row of them is refused.

        Called for batches that are followed (`Batch.is_followed`): a slow sink need not read ahead.
        """
        del connection, batches, most_rows, most_bytes
        return {}

    def confirm(self, connection: Connection, delivered: Mapping[int, DeliveredT_contra]) -> None:
        """Move the cursors to what the sink has confirmed, and dead-letter what it refused."""
        cursors.confirm(connection, self._sink, self.kind, delivered)

    def settle(self, connection: Connection) -> None:
        """Exclude jobs of which the sink has all rows from `jobs_behind`, until they have new rows."""
        cursors.settle(connection, self._sink, self.kind)

    def last_seqs(self, connection: Connection, job_ids: Sequence[int]) -> dict[int, int]:
        """Return the last `seq` ever given to a row of each job.

        Called before the rows are read: where no row up to it is then found, the rows were deleted.
        """
        last_seq = ROWS[self.kind].last_seq
        found = text(f"SELECT id, {last_seq} FROM training_jobs WHERE id = ANY(:jobs) ORDER BY id")  # noqa: S608
        return {row.id: row[1] for row in connection.execute(found, {"jobs": list(job_ids)})}
