"""Rows into Loki's entries, by the rules that Loki would refuse them by, applied before they are sent.

The limits are Loki 3's defaults (`reject_old_samples_max_age`, `creation_grace_period`, `max_line_size`,
`max_chunk_age` / 2 for the window of a stream).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from trainwire.stores.loki.config import MAX_AGE_NS, MAX_FUTURE_NS
from trainwire.workers.sinks.base import RefusedRow
from trainwire.workers.sinks.loki.rows import LogRow, PackedLines

SECOND_NS: Final = 10**9
MINUTE_NS: Final = 60 * SECOND_NS
WINDOW_NS: Final = 50 * MINUTE_NS
LATE_AFTER_NS: Final = 54 * MINUTE_NS
SPAN_NS: Final = 58 * MINUTE_NS
"""Loki refuses a line an hour behind its stream's newest. A line is late well before that, and what is sent before
it is confirmed is cut where its times would span more: so Loki, having taken all of it, would take its oldest line
again. A window is shorter than what makes a line late, so that the ranks of a job need not agree on the time."""
MARGIN_NS: Final = 5 * MINUTE_NS
"""Our clock is not Loki's, and a push takes time: what is this near to a limit counts as beyond it."""
MAX_LINE_BYTES: Final = 250_000
"""Below Loki's 256 KB, so that the number of a part does not matter."""
MAX_PUSH_BYTES: Final = 2 * 1024 * 1024
"""Half of what Loki's distributor can hand on in one message (`grpc_server_max_recv_msg_size`); over that it
answers 500, for ever."""
ENTRY_OVERHEAD_BYTES: Final = 100
MAX_LEVEL_CHARS: Final = 64

Entry = tuple[str, str, dict[str, str]]
"""Time in nanoseconds as text, line, structured metadata: as the push API takes it."""
StreamKey = tuple[str, str | None]
"""Log type, and the hour of late lines (None: the job's own stream)."""


@dataclass(slots=True)
class Push:
    """Entries of one stream, each with the row it came from."""

    key: StreamKey
    entries: list[Entry] = field(default_factory=list)
    rows: list[LogRow] = field(default_factory=list)

    def add(self, entry: Entry, row: LogRow) -> None:
        """Append an entry."""
        self.entries.append(entry)
        self.rows.append(row)

    def chunks(self) -> Iterator[Push]:
        """Yield the entries in pushes that Loki's own limit of a message does not refuse."""
        begin = size = 0
        for number, (_, line, _) in enumerate(self.entries):
            size += ENTRY_OVERHEAD_BYTES + (len(line) if line.isascii() else len(line.encode()))
            if size > MAX_PUSH_BYTES and number > begin:
                yield self.part(begin, number)
                begin, size = number, 0
        yield self.part(begin, len(self.entries))

    def part(self, begin: int, end: int) -> Push:
        """Return the entries from `begin` to before `end`."""
        return Push(self.key, self.entries[begin:end], self.rows[begin:end])


@dataclass(slots=True)
class Plan:
    """What to push for a prefix of the rows, in order, one stream each, and what not to send at all."""

    confirmed_seq: int
    newest_ns: dict[str, int]
    pushes: dict[StreamKey, Push] = field(default_factory=dict)
    refused: list[RefusedRow] = field(default_factory=list)


def is_plain(packs: Sequence[PackedLines], newest_ns: Mapping[str, int], now_ns: int) -> bool:
    """Tell whether no rule below asks for a look at single rows: the packs of a window can go as they are.

    Then `plan` would put all rows, unchanged, into their log type's own stream.
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
    """Return the newest time of each log type once the packs are sent."""
    newest = dict(newest_ns)
    for pack in packs:
        newest[pack.log_type] = max(pack.newest_ns, newest.get(pack.log_type, pack.newest_ns))
    return newest


def plan(rows: Sequence[LogRow], newest_ns: Mapping[str, int], now_ns: int) -> Plan:
    """Sort a prefix of `rows` into streams; it ends before a row that Loki takes only later.

    What is decided of a row depends only on the rows before it, never on where a batch begins, so that a resend
    is the same byte for byte.
    """
    made = Plan(rows[0].seq - 1, dict(newest_ns))
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
    """Return the entries of a row: one, or numbered parts of a line that is too long for one."""
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
    """Cut a line into parts that Loki takes, between characters."""
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
    """Return the labels of a stream; nothing of high cardinality but the job."""
    log_type, late = key
    labels = {"job": "training", "job_id": str(job_id), "log_type": log_type, "source": "backend"}
    return labels if late is None else labels | {"late": late}


def hour_of(ts_ns: int) -> str:
    """Return the hour of a time, as the label of late lines has it."""
    return datetime.fromtimestamp(ts_ns // SECOND_NS, UTC).strftime("%Y-%m-%dT%H")


def _too_old(row: LogRow) -> RefusedRow:
    said = f"{shown_time(row.ts_ns)} is over seven days ago; Loki takes no such line"
    return RefusedRow(row.seq, row.source, "too-old", said)


def shown_time(ts_ns: int) -> str:
    """Return a time as RFC 3339, in whole seconds."""
    return (datetime.fromtimestamp(ts_ns // SECOND_NS, UTC)).isoformat()
