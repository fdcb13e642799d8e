"""The interface of a sink, which writes rows to a store; `plugin` has the one that reads them from Postgres."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from trainwire.workers.errors import Unavailable


class SinkUnavailable(Unavailable):
    """The sink cannot take the rows now. `retry_after_s` is the delay that it requested, None if it did not.

    `may_be_the_jobs`: the data of the job may be the cause rather than the sink. Another job's success then
    proves that the sink works.
    """

    def __init__(self, text: str, retry_after_s: float | None = None, *, may_be_the_jobs: bool = False) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s
        self.may_be_the_jobs = may_be_the_jobs


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A row that the sink will never take: `reason` is a stable slug, `detail` the sink's message."""

    seq: int
    source: str
    reason: str
    detail: str


@dataclass(slots=True)
class Delivered:
    """The outcome of a part of a batch: the last confirmed `seq`, and the refused rows up to it.

    `more`: the next part can be sent as soon as this one is confirmed. `is_answer` is False if no request was
    needed, so that the outcome does not show whether the sink is reachable.
    """

    confirmed_seq: int
    refused: list[RefusedRow] = field(default_factory=list)
    more: bool = False
    is_answer: bool = True

    @property
    def state(self) -> Mapping[str, Any]:
        """JSON that the job's cursor keeps for the next delivery (`DeliveryCursor.state`)."""
        return {}


class RowBatch(Protocol):
    """Consecutive rows of one job, after `confirmed_seq`."""

    @property
    def confirmed_seq(self) -> int:
        """The last row before the batch."""
        ...

    @property
    def is_followed(self) -> bool:
        """Whether `SinkBacklog.read_on` can return rows after this batch."""
        ...


BatchT = TypeVar("BatchT", bound=RowBatch)
BatchT_contra = TypeVar("BatchT_contra", bound=RowBatch, contravariant=True)
DeliveredT = TypeVar("DeliveredT", bound=Delivered)
DeliveredT_contra = TypeVar("DeliveredT_contra", bound=Delivered, contravariant=True)
DeliveredT_co = TypeVar("DeliveredT_co", bound=Delivered, covariant=True)


class Sink(Protocol[BatchT_contra, DeliveredT_co]):
    """Writes rows to a store; it does not use Postgres."""

    @property
    def name(self) -> str:
        """Its name in `trainwire.schemas.sinks`."""
        ...

    def deliver(self, job_id: int, batch: BatchT_contra) -> Iterator[DeliveredT_co]:
        """Send a prefix of the batch, part by part and in order; yield each once the sink has acknowledged it.

        The caller requests the next part only after it has committed the cursor for the one before. Raises
        `SinkUnavailable` to be retried later; unconfirmed rows are then sent again, unchanged. Called from several
        threads, each with another job.
        """
        ...
