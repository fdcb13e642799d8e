"""Defines the interface of a sink, which writes rows to a store.

The module `plugin` defines the interface by which the rows of a sink are read from Postgres.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from trainwire.workers.errors import Unavailable


class SinkUnavailable(Unavailable):
    """The sink cannot accept rows now, so the delivery is retried later.

    `retry_after_s` is the delay in seconds that the sink requested, or None. `may_be_the_jobs` is True if the data
    of the job may be the cause instead of the sink; the success of another job then proves that the sink works.
    """

    def __init__(self, text: str, retry_after_s: float | None = None, *, may_be_the_jobs: bool = False) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s
        self.may_be_the_jobs = may_be_the_jobs


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A row that the sink will never accept. `reason` is a stable identifier, `detail` the sink's message."""

    seq: int
    source: str
    reason: str
    detail: str


@dataclass(slots=True)
class Delivered:
    """The result of sending a part of a batch: the last confirmed `seq`, and the refused rows up to it.

    `more` is True if the next part can be sent as soon as this one is confirmed. `is_answer` is False if no
    request was sent, so that the result does not show whether the sink is reachable.
    """

    confirmed_seq: int
    refused: list[RefusedRow] = field(default_factory=list)
    more: bool = False
    is_answer: bool = True

    @property
    def state(self) -> Mapping[str, Any]:
        """JSON values to store in the job's cursor; the next delivery reads them from `DeliveryCursor.state`."""
        return {}


class RowBatch(Protocol):
    """Consecutive rows of one job, which begin after the row `confirmed_seq`."""

    @property
    def confirmed_seq(self) -> int:
        """Sequence number of the last row before the batch; the sink has confirmed all rows up to it."""
        ...

    @property
    def is_followed(self) -> bool:
        """Whether `SinkBacklog.read_on` may return rows that follow this batch."""
        ...


BatchT = TypeVar("BatchT", bound=RowBatch)
BatchT_contra = TypeVar("BatchT_contra", bound=RowBatch, contravariant=True)
DeliveredT = TypeVar("DeliveredT", bound=Delivered)
DeliveredT_contra = TypeVar("DeliveredT_contra", bound=Delivered, contravariant=True)
DeliveredT_co = TypeVar("DeliveredT_co", bound=Delivered, covariant=True)


class Sink(Protocol[BatchT_contra, DeliveredT_co]):
    """Writes rows to a store. It does not use Postgres."""

    @property
    def name(self) -> str:
        """The name of the sink in `trainwire.schemas.sinks`."""
        ...

    def deliver(self, job_id: int, batch: BatchT_contra) -> Iterator[DeliveredT_co]:
        """Send a prefix of the batch in parts, in order; yield a result once the sink has acknowledged a part.

        The caller requests the next part only if `Delivered.more` is True, and after it has committed the cursor
        for the previous one. Raises `SinkUnavailable` if the delivery is to be retried later; rows that are not
        confirmed are then sent again, unchanged. Several threads call this method concurrently, each for another
        job.
        """
        ...
