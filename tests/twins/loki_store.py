"""The storage of a twin of Loki: the streams of its tenants, and how a push becomes lines and an answer."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

import msgspec

from tests.twins import loki_rules as rules
from tests.twins.loki_rules import Labels, Limits
from trainwire.schemas.decode_errors import DECODE_ERRORS

FAR_NS = 2**63


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One line of a stream; cheap enough for millions."""

    ts_ns: int
    line: str
    metadata: dict[str, str]


class Line(NamedTuple):
    """One stored line; labels as they were pushed."""

    ts_ns: int
    line: str
    labels: Labels
    metadata: Labels


class Answer(NamedTuple):
    """An HTTP status with the text that explains it."""

    status: int
    text: str = ""


class Value(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """One entry of a push."""

    ts: str
    line: str
    metadata: dict[str, str] = {}


class PushStream(msgspec.Struct):
    """One stream of a push."""

    stream: dict[str, str]
    values: list[Value]


class Push(msgspec.Struct):
    """The body of a push."""

    streams: list[PushStream] = []


_decode_push = msgspec.json.Decoder(Push).decode


@dataclass
class Counts:
    """Counts of a twin: `lines` came, of which `stored`, `duplicates` and `refused`."""

    lines: int = 0
    stored: int = 0
    duplicates: int = 0
    refused: int = 0


@dataclass
class Stream:
    """The lines of one set of labels, as one ingester holds them."""

    pushed_labels: Labels
    labels: Labels
    text: str
    entries: list[Entry] = field(default_factory=list)
    firsts: dict[int, Entry] = field(default_factory=dict)
    others: dict[int, dict[str, list[Entry]]] = field(default_factory=dict)
    unwritten: list[Entry] = field(default_factory=list)
    unwritten_from_ns: int = FAR_NS
    changed_ns: int = 0
    newest_ns: int | None = None
    is_sorted: bool = True

    def hidden(self, before_ns: int) -> set[int]:
        """Return the identities of lines that are not flushed, and older than queries look for in ingesters."""
        if self.unwritten_from_ns >= before_ns:
            return set()
        return {id(entry) for entry in self.unwritten if entry.ts_ns < before_ns}

    def write_down(self) -> None:
        """Flush the open chunk to the store."""
        self.unwritten.clear()
        self.unwritten_from_ns = FAR_NS

    def between(self, start_ns: int, end_ns: int, limit: int, *, is_forward: bool) -> list[Entry]:
        """Return the first or last lines of [start, end), oldest first, equal times in the order of arrival."""
        if not self.is_sorted:
            self.entries.sort(key=_TIME)
            self.is_sorted = True
        start = bisect_left(self.entries, start_ns, key=_TIME)
        end = bisect_left(self.entries, end_ns, key=_TIME)
        return (
            self.entries[start : min(end, start + limit)]
            if is_forward
            else self.entries[max(start, end - limit) : end]
        )

    def remove(self, start_ns: int, end_ns: int) -> None:
        """Remove the lines of [start, end]."""
        self.entries = [entry for entry in self.entries if not start_ns <= entry.ts_ns <= end_ns]
        for entries in (self.firsts, self.others):
            for ts_ns in [ts_ns for ts_ns in entries if start_ns <= ts_ns <= end_ns]:
                del entries[ts_ns]

    def add(self, entry: Entry, *, metadata_counts: bool) -> bool:
        """Store a line; return whether it is a new one."""
        first = self.firsts.setdefault(entry.ts_ns, entry)
        if first is not entry:
            equal = self.others.setdefault(entry.ts_ns, {first.line: [first]}).setdefault(entry.line, [])
            if any(not metadata_counts or known.metadata == entry.metadata for known in equal):
                return False
            equal.append(entry)
        if self.newest_ns is None or entry.ts_ns >= self.newest_ns:
            self.newest_ns = entry.ts_ns
        else:
            self.is_sorted = False
        self.entries.append(entry)
        self.unwritten.append(entry)
        self.unwritten_from_ns = min(self.unwritten_from_ns, entry.ts_ns)
        return True


class Store:
    """All tenants' streams behind one lock."""

    def __init__(self, limits: Limits, now_ns: Callable[[], int]) -> None:
        self.limits = limits
        self.now_ns = now_ns
        self.lock = threading.Lock()
        self.counts = Counts()
        self.deletes: list[tuple[str, str]] = []
        self._tenants: dict[str, dict[str, Stream]] = {}

    def streams(self, tenant: str) -> list[Stream]:
        """Return a tenant's streams."""
        idle_since_ns = self.now_ns() - self.limits.max_chunk_idle_ns
        streams = list(self._tenants.get(tenant, {}).values())
        for stream in streams:
            if stream.changed_ns < idle_since_ns:
                stream.write_down()
        return streams

    def flush(self) -> None:
        """Write every open chunk to the store."""
        with self.lock:
            for streams in self._tenants.values():
                for stream in streams.values():
                    stream.write_down()

    def push(self, tenant: str, body: bytes) -> Answer:
        """Store the lines of a push that Loki would accept, and return its answer."""
        try:
            push = _decode_push(body)
        except DECODE_ERRORS as error:
            return Answer(400, f"loghttp.PushRequest: {error}")
        try:
            return self._refused_whole(push) or self._distribute(tenant, push, len(body))
        except (ValueError, OverflowError) as error:
            return Answer(400, f"error reading entry timestamp: {error}")

    def _refused_whole(self, push: Push) -> Answer | None:
        if not push.streams:
            return Answer(422, "error at least one valid stream is required for ingestion")
        for stream in push.streams:
            for name in stream.stream:
                if not rules.LABEL_NAME.fullmatch(name):
                    return Answer(400, f"couldn't parse labels: 1:2: parse error: unexpected character: {name!r}")
        return None

    def _distribute(self, tenant: str, push: Push, body_bytes: int) -> Answer:
        refusals: list[str] = []
        accepted = [
            (stream.stream, labels, good)
            for stream in push.streams
            if stream.values
            for labels in [rules.stream_labels(stream.stream, self.limits)]
            if (good := self._valid(labels, stream.values, refusals))
        ]
        limit = self.limits.max_message_bytes
        if body_bytes > limit and (total := _message_bytes(accepted)) > limit:
            reason = f"grpc: received message larger than max ({total} vs. {limit})"
            return Answer(500, f"rpc error: code = ResourceExhausted desc = {reason}")
        with self.lock:
            self.counts.lines += sum(len(stream.values) for stream in push.streams)
            self.counts.refused += sum(len(s.values) for s in push.streams) - sum(len(a[2]) for a in accepted)
            if text := self._ingest(tenant, accepted):
                return Answer(400, text)
        return Answer(400, rules.grouped(refusals)) if refusals else Answer(204)

    def _valid(self, labels: Labels, values: Sequence[Value], refusals: list[str]) -> list[Entry]:
        if reason := rules.labels_refusal(labels, self.limits):
            refusals.append(reason)
            return []
        good, stream, now_ns, limits = [], rules.label_text(labels), self.now_ns(), self.limits
        for value in values:
            entry = Entry(int(value.ts), value.line, value.metadata)
            reason = rules.entry_refusal(entry.ts_ns, entry.line, stream, now_ns, limits)
            reason = reason or rules.metadata_refusal(entry.metadata, stream, limits)
            if reason:
                refusals.append(reason)
            else:
                good.append(entry)
        return good

    def _ingest(self, tenant: str, accepted: Sequence[tuple[Labels, Labels, list[Entry]]]) -> str | None:
        streams = self._tenants.setdefault(tenant, {})
        refusal: str | None = None
        for pushed, labels, values in accepted:
            text = rules.label_text(labels)
            stream = streams.setdefault(text, Stream(pushed, labels, text))
            # Loki's ingester keeps the outcome of the last stream only: the refusals of earlier ones get lost.
            refusal = self._append(tenant, stream, values)
        return refusal

    def _append(self, tenant: str, stream: Stream, entries: Sequence[Entry]) -> str | None:
        late: list[tuple[int, int]] = []
        stored, metadata_counts = 0, self.limits.metadata_tells_lines_apart
        for entry in entries:
            cutoff_ns = entry.ts_ns if stream.newest_ns is None else stream.newest_ns - self.limits.max_behind_ns
            if entry.ts_ns < cutoff_ns:
                late.append((entry.ts_ns, cutoff_ns))
            else:
                stored += stream.add(entry, metadata_counts=metadata_counts)
        stream.changed_ns = self.now_ns()
        if (stream.newest_ns or 0) - stream.unwritten_from_ns > self.limits.max_chunk_span_ns:
            stream.write_down()
        self.counts.stored += stored
        self.counts.duplicates += len(entries) - len(late) - stored
        self.counts.refused += len(late)
        return rules.too_far_behind(late, len(entries), stream.text, tenant) if late else None


_TIME = attrgetter("ts_ns")


def _message_bytes(accepted: Sequence[tuple[Labels, Labels, list[Entry]]]) -> int:
    return sum(
        rules.size(entry.line) + rules.metadata_bytes(entry.metadata)
        for _, _, entries in accepted
        for entry in entries
    )
