"""Log rows as a sink is given them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from workers.sinks.base import Delivered


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
    """The next rows of one job. `newest_ns` is the newest time of each log type that Loki has.

    `last_seq` is the last row that the job has ever had; without packs somebody has deleted what came up to it.
    """

    newest_ns: Mapping[str, int]
    packs: Sequence[PackedLines]
    read_rows: Callable[[], Sequence[LogRow]]
    """Reads the same rows one by one, for when they are not as plain as Loki wants a push."""
    last_seq: int


@dataclass(slots=True)
class DeliveredLines(Delivered):
    """`newest_ns` is the newest time of each log type that was sent."""

    newest_ns: Mapping[str, int] = field(default_factory=dict)
