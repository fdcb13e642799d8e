"""Converts log rows into entries for Loki that are within Loki's limits.

The limits are the defaults of Loki 3 (`reject_old_samples_max_age`, `creation_grace_period`, `max_line_size`, and
half of `max_chunk_age` for the times in one stream).
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
"""Maximum time span of the lines that are sent before a confirmation.

Loki refuses a line that is an hour older than the newest one of its stream. The span is below an hour, so that
Loki accepts all of these lines again after a crash. A line counts as late (LATE_AFTER_NS) well before an hour.
WINDOW_NS is shorter than that, so that the clocks of a job's ranks may differ.
"""
MARGIN_NS: Final = 5 * MINUTE_NS
"""Safety margin below Loki's age limit: its clock may differ from ours, and a push takes time."""
MAX_LINE_BYTES: Final = 250_000
"""Maximum size of a line: below Loki's limit of 256 KB, with room for the metadata."""
MAX_PUSH_BYTES: Final = 2 * 1024 * 1024
"""Maximum size of a push request.

It is half of the largest message that Loki's distributor can forward (`grpc_server_max_recv_msg_size`); Loki
answers a larger push with status 500 each time.
"""
ENTRY_OVERHEAD_BYTES: Final = 100
MAX_LEVEL_CHARS: Final = 64

Entry = tuple[str, str, dict[str, str]]
"""One value of the push API: (time in nanoseconds as text, line, structured metadata)."""
StreamKey = tuple[str, str | None]
"""Identifies a stream of a job in Loki: (log type, hour).

The hour is set for late lines only; None is the normal stream.
"""


@dataclass(slots=True)
class Push:
    """Entries to push to one Loki stream. For each entry, `rows` contains the log row from which it was made."""

    key: StreamKey
    entries: list[Entry] = field(default_factory=list)
    rows: list[LogRow] = field(default_factory=list)

    def add(self, entry: Entry, row: LogRow) -> None:
        """Append an entry with its row."""
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
    """The entries to push for the first rows of a batch, by Loki stream, and the rows that Loki would refuse.

    `confirmed_seq` is the `seq` of the last row that the plan covers. `newest_ns` is the newest time by log type,
    in nanoseconds since 1970, once the entries are sent.
    """

    confirmed_seq: int
    newest_ns: dict[str, int]
    pushes: dict[StreamKey, Push] = field(default_factory=dict)
    refused: list[RefusedRow] = field(default_factory=list)


def can_send_packed(packs: Sequence[PackedLines], newest_ns: Mapping[str, int], now_ns: int) -> bool:
    """Return whether the packs of a window can be sent unchanged.

    If so, `plan` would put all their rows, unchanged, into the normal stream of their log type.
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
    """Return the newest time that Loki has by log type once the packs are sent.

    `newest_ns` contains these times before they are sent.
    """
    newest = dict(newest_ns)
    for pack in packs:
        newest[pack.log_type] = max(pack.newest_ns, newest.get(pack.log_type, pack.newest_ns))
    return newest


def plan(rows: Sequence[LogRow], newest_ns: Mapping[str, int], now_ns: int) -> PushPlan:
    """Assign a prefix of `rows`, which must not be empty, to streams.

    The prefix ends before a row that Loki does not accept yet: its time is too far ahead, or earlier rows must be
    confirmed first. Rows that are too old for Loki are listed as refused. `newest_ns` is the newest time sent
    before, by log type, `now_ns` the present time.

    The stream of a row depends only on the rows before it, never on where a batch begins, so that a resend is
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
    """Return the entries of a row: one, or several numbered parts if its line is longer than `MAX_LINE_BYTES`."""
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
    """Split a line into parts of at most `MAX_LINE_BYTES`, at character boundaries."""
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
    """Return the labels of a Loki stream. Only `job_id` has a high cardinality."""
    log_type, late = key
    labels = {"job": "training", "job_id": str(job_id), "log_type": log_type, "source": "backend"}
    return labels if late is None else labels | {"late": late}


def hour_of(ts_ns: int) -> str:
    """Return the hour of a time as text for the label `late`, such as `2026-11-30T01`."""
    return datetime.fromtimestamp(ts_ns // SECOND_NS, UTC).strftime("%Y-%m-%dT%H")


def _too_old(row: LogRow) -> RefusedRow:
    detail = f"{shown_time(row.ts_ns)} is over seven days ago; Loki takes no such line"
    return RefusedRow(row.seq, row.source, "too-old", detail)


def shown_time(ts_ns: int) -> str:
    """Return a time in nanoseconds as RFC 3339 text, in whole seconds."""
    return datetime.fromtimestamp(ts_ns // SECOND_NS, UTC).isoformat()


@dataclass(frozen=True, slots=True)
class LogRow:
    """One row of `training_logs`.

    `ts_ns` is the time to send to Loki, in nanoseconds since 1970. `logged_at` is the trainer's own time
    (RFC 3339); it is set only if the trainer's clock was too far ahead, so that `ts_ns` differs from it.
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
    """Log rows of one log type that Postgres has packed into text.

    `values` is the content of the JSON array in a push request; the times and `longest_bytes` describe the lines
    in it.
    """

    log_type: str
    last_seq: int
    oldest_ns: int
    newest_ns: int
    longest_bytes: int
    values: str


@dataclass(frozen=True, slots=True)
class LogBatch:
    """The log rows of one job after the row `confirmed_seq`, grouped into windows of time.

    The rows of a window are consecutive and are packed by log type; it is sent after the previous window is
    confirmed. `newest_ns` is the newest time in Loki by log type. `last_seq` is the last row that the job has ever
    had; if there are no windows, all rows up to it were deleted.
    """

    confirmed_seq: int
    newest_ns: Mapping[str, int]
    windows: Sequence[Sequence[PackedLines]]
    read_rows: Callable[[int, int], Sequence[LogRow]]
    """Function that reads the rows after one `seq` up to another; used if packs cannot be sent unchanged."""
    last_seq: int

    @property
    def is_followed(self) -> bool:
        """Whether the job has rows after this batch."""
        return bool(self.windows) and self.windows[-1][-1].last_seq < self.last_seq


@dataclass(slots=True)
class DeliveredLines(Delivered):
    """The result of sending a part, with the newest time that was sent up to its end, by log type."""

    newest_ns: Mapping[str, int] = field(default_factory=dict)

    @property
    def state(self) -> Mapping[str, int]:
        """The newest time by log type, in the form in which the cursor of the job stores it."""
        return self.newest_ns
