"""What every sink is: takes rows in order, and says which it will never take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from workers.errors import Unavailable


class SinkUnavailable(Unavailable):
    """The sink did not take the rows now; `retry_after_s` is what it asked for, if it did."""

    def __init__(self, text: str, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class LogRow:
    """One row of training_logs, its time in nanoseconds since 1970."""

    seq: int
    attempt: int
    rank: int | None
    source: str
    log_type: str
    level: str | None
    ts_ns: int
    content: str


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A row that the sink will never take: `reason` is a stable slug, `detail` the sink's words."""

    row: LogRow
    reason: str
    detail: str


@dataclass(slots=True)
class Delivered:
    """What became of a batch: confirmed up to a seq, and what was refused on the way."""

    confirmed_seq: int
    newest_ns: Mapping[str, int]
    refused: list[RefusedRow] = field(default_factory=list)


class LogSink(Protocol):
    """Delivers log rows of one job."""

    @property
    def name(self) -> str:
        """What cursors and dead letters call it."""
        ...

    def deliver(self, job_id: int, rows: Sequence[LogRow], newest_ns: Mapping[str, int]) -> Delivered:
        """Send a prefix of `rows`, in order, and return on proof that the sink has it.

        `newest_ns` is what the last delivery of the job returned. Raises `SinkUnavailable` when to try later;
        rows sent before that are sent again, byte for byte the same.
        """
        ...
