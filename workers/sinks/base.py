"""The interface of a sink, which writes rows to a store; `trainwire.workers.sinks.backlog` reads them from
Postgres."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from trainwire.workers.errors import Unavailable


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
    """The outcome of a part of a batch: confirmed up to a seq, and the rows refused on the way.

    `more` when the sink takes the next part as soon as this one is confirmed. `is_answer` is False where no
    request was needed, so that the outcome does not show whether the sink is reachable.
    """

    confirmed_seq: int
    refused: list[RefusedRow] = field(default_factory=list)
    more: bool = False
    is_answer: bool = True

    @property
    def state(self) -> Mapping[str, Any]:
        """JSON that the job's cursor keeps for the next delivery (`DeliveryCursor.state`)."""
        return {}


class Batch(Protocol):
    """What comes next of a job, behind `confirmed_seq`."""

    @property
    def confirmed_seq(self) -> int:
        """The last row that the sink has, once all before this batch is delivered."""
        ...

    @property
    def is_followed(self) -> bool:
        """Tell whether `SinkBacklog.read_on` finds something behind it."""
        ...


BatchT = TypeVar("BatchT", bound=Batch)
BatchT_contra = TypeVar("BatchT_contra", bound=Batch, contravariant=True)
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
        """Send a prefix of the batch, part by part and in order; yield each on proof that the sink has it.

        Whoever asks for the next part has confirmed the one before, or asks no more. Raises `SinkUnavailable` when
        to try later; what was not confirmed before that is sent again, the same. Called from several threads, each
        with another job.
        """
        ...
