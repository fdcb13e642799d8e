"""Log rows as Loki is given them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from trainwire.workers.sinks.base import Delivered


@dataclass(frozen=True, slots=True)
class LogRow:
    """One row of training_logs; `ts_ns` is the time to send, in nanoseconds since 1970.

    `logged_at` is the trainer's own time (RFC 3339) where `ts_ns` is another: its clock is too far ahead.
    """

    seq: int
    attempt: int
    rank: int | None
    source: str
    log_type: str
    level: str | None
    ts_ns: int
    content: str
    logged_at: str | None = None


@dataclass(frozen=True, slots=True)
class PackedLines:
    """Rows of one log type as Postgres packs them: `values` is the inside of a push's JSON array."""

    log_type: str
    last_seq: int
    oldest_ns: int
    newest_ns: int
    longest_bytes: int
    values: str


@dataclass(frozen=True, slots=True)
class LogBatch:
    """The rows of one job after `confirmed_seq`. `newest_ns` is the newest time of each log type that Loki has.

    They come in windows of time, each the packs of consecutive rows: no window is sent before the one before it is
    confirmed. `last_seq` is the last row that the job has ever had; without windows somebody has deleted what came
    up to it.
    """

    confirmed_seq: int
    newest_ns: Mapping[str, int]
    windows: Sequence[Sequence[PackedLines]]
    read_rows: Callable[[int, int], Sequence[LogRow]]
    """Reads rows after one seq and up to another, for when they are not as plain as Loki wants a push."""
    last_seq: int

    @property
    def is_followed(self) -> bool:
        """Tell whether the job has had rows behind those in this batch."""
        return bool(self.windows) and self.windows[-1][-1].last_seq < self.last_seq


@dataclass(slots=True)
class DeliveredLines(Delivered):
    """`newest_ns` is the newest time of each log type that was sent."""

    newest_ns: Mapping[str, int] = field(default_factory=dict)

    @property
    def state(self) -> Mapping[str, int]:
        """The newest times are what the cursor keeps."""
        return self.newest_ns
