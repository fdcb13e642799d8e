"""What every sink is, and what waits for it: rows in order, and which of them it will never take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from sqlalchemy import Connection

from workers.errors import Unavailable


class SinkUnavailable(Unavailable):
    """The sink did not take the rows now; `retry_after_s` is what it asked for, if it did.

    `may_be_the_jobs` when what the job sends may be the cause, and the sink well: others will tell.
    """

    def __init__(self, text: str, retry_after_s: float | None = None, *, may_be_the_jobs: bool = False) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s
        self.may_be_the_jobs = may_be_the_jobs


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A row that the sink will never take: `reason` is a stable slug, `detail` the sink's words."""

    seq: int
    source: str
    reason: str
    detail: str


@dataclass(slots=True)
class Delivered:
    """What became of a part of a batch: confirmed up to a seq, and what was refused on the way.

    `more` when the sink takes the next part as soon as this one is confirmed. Not `is_answer` where there was
    nothing to ask the sink: that says nothing about whether it is there.
    """

    confirmed_seq: int
    refused: list[RefusedRow] = field(default_factory=list)
    more: bool = False
    is_answer: bool = True


class Batch(Protocol):
    """What comes next of a job, behind `confirmed_seq`."""

    @property
    def confirmed_seq(self) -> int:
        """The last row that the sink has, once all before this batch is delivered."""
        ...

    @property
    def is_followed(self) -> bool:
        """Tell whether `Backlog.read_on` finds something behind it."""
        ...


BatchT = TypeVar("BatchT", bound=Batch)
BatchT_contra = TypeVar("BatchT_contra", bound=Batch, contravariant=True)
DeliveredT = TypeVar("DeliveredT", bound=Delivered)
DeliveredT_contra = TypeVar("DeliveredT_contra", bound=Delivered, contravariant=True)
DeliveredT_co = TypeVar("DeliveredT_co", bound=Delivered, covariant=True)


class Sink(Protocol[BatchT_contra, DeliveredT_co]):
    """A store that gets what Postgres has: the network's side, which knows no database."""

    @property
    def name(self) -> str:
        """What cursors and dead letters call it."""
        ...

    def deliver(self, job_id: int, batch: BatchT_contra) -> Iterator[DeliveredT_co]:
        """Send a prefix of the batch, part by part and in order; yield each on proof that the sink has it.

        Whoever asks for the next part has confirmed the one before, or asks no more. Raises `SinkUnavailable` when
        to try later; what was not confirmed before that is sent again, the same. Called from several threads, each
        with another job.
        """
        ...


class Backlog(Protocol[BatchT, DeliveredT_contra]):
    """What waits in Postgres for one sink."""

    def jobs_behind(self, connection: Connection, limit: int) -> list[int]:
        """Return jobs with something to deliver whose time has come, those that were moved longest ago first."""
        ...

    def read(
        self, connection: Connection, job_ids: Sequence[int], most_rows: int, most_bytes: int
    ) -> Mapping[int, BatchT]:
        """Return what comes next for each job: at most so many rows and bytes of each, at least one."""
        ...

    def read_on(
        self, connection: Connection, batches: Mapping[int, BatchT], most_rows: int, most_bytes: int, /
    ) -> Mapping[int, BatchT]:
        """Return what comes next once these batches are delivered, all of them and nothing of them refused."""
        ...

    def confirm(self, connection: Connection, delivered: Mapping[int, DeliveredT_contra]) -> None:
        """Record what the sink has proven to have, and bury what it refused."""
        ...

    def settle(self, connection: Connection) -> None:
        """Leave jobs of which the sink has everything out of what `jobs_behind` looks at."""
        ...
