"""Log rows as entries of Loki, adapted to Loki's limits before they are sent.

The limits are Loki 3's defaults (`reject_old_samples_max_age`, `creation_grace_period`, `max_line_size`,
`max_chunk_age` / 2 for the window of a stream).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from trainwire.stores.loki.config import MAX_AGE_NS, MAX_FUTURE_NS
from trainwire.workers.sinks.base import Delivered, RefusedRow

SECOND_NS: Final = 10**9
MINUTE_NS: Final = 60 * SECOND_NS
WINDOW_NS: Final = 50 * MINUTE_NS
LATE_AFTER_NS: Final = 54 * MINUTE_NS
SPAN_NS: Final = 58 * MINUTE_NS
"""Loki refuses a line that is an hour older than the newest of its stream. A line is treated as late well before
that, and the lines that are sent before a confirmation span less than an hour, so that Loki accepts all of them
again after a crash. A window is shorter than LATE_AFTER_NS, so that the clocks of a job's ranks may differ."""
MARGIN_NS: Final = 5 * MINUTE_NS
"""Safety margin at Loki's age limit: its clock may differ from ours, and a push takes time."""
MAX_LINE_BYTES: Final = 250_000
"""Below Loki's 256 KB, with room for the metadata."""
MAX_PUSH_BYTES: Final = 2 * 1024 * 1024
"""Half of the largest message that Loki's distributor can forward (`grpc_server_max_recv_msg_size`); a larger push
is answered 500 every time."""
ENTRY_OVERHEAD_BYTES: Final = 100
MAX_LEVEL_CHARS: Final = 64

Entry = tuple[str, str, dict[str, str]]
"""Time in nanoseconds as text, line, structured metadata: a value of the push API."""
StreamKey = tuple[str, str | None]
"""Log type, and the hour of late lines (None: the job's own stream)."""


@dataclass(slots=True)
class Push:
    """Entries of one stream, each with its row."""

    key: StreamKey
    entries: list[Entry] = field(default_factory=list)
    rows: list[LogRow] = field(default_factory=list)

    def add(self, entry: Entry, row: LogRow) -> None:
        """Append an entry."""
        self.entries.append(entry)
        self.rows.append(row)

    def chunks(self) -> Iterator[Push]:
        """Split the entries into pushes of at most `MAX_PUSH_BYTES`."""
        begin = size = 0
        for number, (_, line, _) in enumerate(self.entries):
            size += ENTRY_OVERHEAD_BYTES + (len(line) if line.isascii() else len(line.encode()))
            if size > MAX_PUSH_BYTES and number > begin:
                yield Push(self.key, self.entries[begin:number], self.rows[begin:number])
                begin, size = number, 0
        yield Push(self.key, self.entries[begin:], self.rows[begin:])


@dataclass(slots=True)
class PushPlan:
    """The pushes for a prefix of the rows, in order, one per stream, and the rows that Loki would refuse."""

    confirmed_seq: int
    newest_ns: dict[str, int]
    pushes: dict[StreamKey, Push] = field(default_factory=dict)
    refused: list[RefusedRow] = field(default_factory=list)


def can_send_packed(packs: Sequence[PackedLines], newest_ns: Mapping[str, int], now_ns: int) -> bool:
    """Return whether the packs of a window can be sent unchanged.

    That is, whether `plan` would put all their rows, unchanged, into their log type's own stream.
    """
    earliest_ns, latest_ns = now_ns - MAX_AGE_NS + MARGIN_NS, now_ns + MAX_FUTURE_NS
    newest = newest_after(packs, newest_ns)
    return all(
        max(earliest_ns, newest[pack.log_type] - LATE_AFTER_NS) <= pack.oldest_ns
        and pack.newest_ns <= latest_ns
        and pack.longest_bytes <= MAX_LINE_BYTES
        for pack in packs
    )


def newest_after(packs: Sequence[PackedLines], newest_ns: Mapping[str, int]) -> dict[str, int]:
    """Return the newest time of each log type after the packs are sent."""
    newest = dict(newest_ns)
    for pack in packs:
        newest[pack.log_type] = max(pack.newest_ns, newest.get(pack.log_type, pack.newest_ns))
    return newest


def plan(rows: Sequence[LogRow], newest_ns: Mapping[str, int], now_ns: int) -> PushPlan:
    """Assign a prefix of `rows` to streams; it ends before a row that Loki accepts only later.

    The decision for a row depends only on the rows before it, never on where a batch begins, so that a resend is
    identical byte for byte.
    """
    made = PushPlan(rows[0].seq - 1, dict(newest_ns))
    oldest_ns: dict[str, int] = {}
    earliest_ns, latest_ns = now_ns - MAX_AGE_NS + MARGIN_NS, now_ns + MAX_FUTURE_NS
    for row in rows:
        ts_ns, log_type = row.ts_ns, row.log_type
        if ts_ns > latest_ns:
            return made
        if ts_ns < earliest_ns:
            made.refused.append(_too_old(row))
            made.confirmed_seq = row.seq
            continue
        newest = max(ts_ns, made.newest_ns.get(log_type, ts_ns))
        late = ts_ns < newest - LATE_AFTER_NS
        if not late:
            oldest = min(ts_ns, oldest_ns.get(log_type, ts_ns))
            if newest > oldest + SPAN_NS:
                return made
            oldest_ns[log_type] = oldest
        made.newest_ns[log_type] = newest
        key = (log_type, hour_of(ts_ns) if late else None)
        push = made.pushes.get(key) or made.pushes.setdefault(key, Push(key))
        for entry in entries_of(row):
            push.add(entry, row)
        made.confirmed_seq = row.seq
    return made


def entries_of(row: LogRow) -> list[Entry]:
    """Return the entries of a row: one, or numbered parts of a line that is longer than `MAX_LINE_BYTES`."""
    metadata = {"seq": str(row.seq), "attempt": str(row.attempt)}
    if row.rank is not None:
        metadata["rank"] = str(row.rank)
    if row.level is not None:
        metadata["level"] = row.level[:MAX_LEVEL_CHARS]
    if row.logged_at is not None:
        metadata["logged_at"] = row.logged_at
    parts = split_line(row.content)
    if len(parts) == 1:
        return [(str(row.ts_ns), row.content, metadata)]
    numbered = enumerate(parts, 1)
    return [(str(row.ts_ns), part, metadata | {"part": f"{n}/{len(parts)}"}) for n, part in numbered]


def split_line(line: str) -> list[str]:
    """Split a line between characters into parts of at most `MAX_LINE_BYTES`."""
    if len(line) * 4 <= MAX_LINE_BYTES or len(data := line.encode()) <= MAX_LINE_BYTES:
        return [line]
    parts = []
    while data:
        end = min(MAX_LINE_BYTES, len(data))
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        parts.append(data[:end].decode())
        data = data[end:]
    return parts


def labels_of(job_id: int, key: StreamKey) -> dict[str, str]:
    """Return the labels of a stream; only `job_id` has a high cardinality."""
    log_type, late = key
    labels = {"job": "training", "job_id": str(job_id), "log_type": log_type, "source": "backend"}
    return labels if late is None else labels | {"late": late}


def hour_of(ts_ns: int) -> str:
    """Return the hour of a time, as in the label `late`, such as `2026-11-30T01`."""
    return datetime.fromtimestamp(ts_ns // SECOND_NS, UTC).strftime("%Y-%m-%dT%H")


def _too_old(row: LogRow) -> RefusedRow:
    detail = f"{shown_time(row.ts_ns)} is over seven days ago; Loki takes no such line"
    return RefusedRow(row.seq, row.source, "too-old", detail)


def shown_time(ts_ns: int) -> str:
    """Return a time as RFC 3339, in whole seconds."""
    return datetime.fromtimestamp(ts_ns // SECOND_NS, UTC).isoformat()


@dataclass(frozen=True, slots=True)
class LogRow:
    """One row of training_logs; `ts_ns` is the time to send, in nanoseconds since 1970.

    `logged_at` is the trainer's own time (RFC 3339) if its clock was too far ahead and `ts_ns` differs.
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
    """Rows of one log type, packed by Postgres: `values` is the content of the JSON array of a push."""

    log_type: str
    last_seq: int
    oldest_ns: int
    newest_ns: int
    longest_bytes: int
    values: str


@dataclass(frozen=True, slots=True)
class LogBatch:
    """The rows of one job after `confirmed_seq`. `newest_ns` is the newest time of each log type in Loki.

    `windows` are spans of time, each with the packs of consecutive rows: a window is sent after the one before it
    is confirmed. `last_seq` is the last row that the job has ever had; without windows, all rows up to it were
    deleted.
    """

    confirmed_seq: int
    newest_ns: Mapping[str, int]
    windows: Sequence[Sequence[PackedLines]]
    read_rows: Callable[[int, int], Sequence[LogRow]]
    """Reads the rows after one `seq` up to another, if packs cannot be sent unchanged (`can_send_packed`)."""
    last_seq: int

    @property
    def is_followed(self) -> bool:
        """Whether the job has rows after this batch."""
        return bool(self.windows) and self.windows[-1][-1].last_seq < self.last_seq


@dataclass(slots=True)
class DeliveredLines(Delivered):
    """The outcome of a part, with the newest time of each log type that was sent."""

    newest_ns: Mapping[str, int] = field(default_factory=dict)

    @property
    def state(self) -> Mapping[str, int]:
        """The newest time of each log type."""
        return self.newest_ns
