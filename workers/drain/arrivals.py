"""Decoded stream entries: their order, their message numbers, and the parts of joined entries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from trainwire.schemas.keys import Kind
from trainwire.schemas.wire.entries import encode_entry, raw_value
from trainwire.schemas.wire.joining import split
from trainwire.schemas.wire.messages import Message
from trainwire.workers.drain.decoding import Content, Lost, RawEntry, Rejected, decode, memory_bytes


@dataclass(slots=True, eq=False)
class Arrival:
    """A stream entry (`raw`) with the result of decoding it (`content`)."""

    raw: RawEntry
    content: Content


def decode_batch(
    kind: Kind, entries: Sequence[RawEntry], rejections: Mapping[str, Rejected], max_bytes: int
) -> tuple[list[Arrival], bool]:
    """Decode entries until their messages take `max_bytes` of memory.

    Return them, and whether entries are left over. Entries whose ids are in `rejections` are not decoded.
    """
    arrivals: list[Arrival] = []
    for entry in entries:
        if max_bytes <= 0:
            return arrivals, True
        if known := rejections.get(entry.entry_id):
            arrivals.append(Arrival(entry, known))
            continue
        content, plain_bytes = decode(kind, entry)
        arrivals.append(Arrival(entry, content))
        max_bytes -= memory_bytes(content, plain_bytes)
    return arrivals, False


def in_order(arrivals: Sequence[Arrival]) -> list[Arrival]:
    """Return the arrivals sorted by message number within each source.

    Each source keeps its places in the list: only arrivals of the same source are exchanged with each other.
    """
    if _is_in_order(arrivals):
        return list(arrivals)
    by_source: dict[tuple[int | None, str | None], list[Arrival]] = defaultdict(list)
    for arrival in arrivals:
        by_source[arrival.content.job_id, arrival.content.source].append(arrival)
    queues = {
        source: iter(sorted(queue, key=lambda arrival: first_seq_of(arrival.content)))
        for source, queue in by_source.items()
    }
    return [next(queues[arrival.content.job_id, arrival.content.source]) for arrival in arrivals]


def split_arrival(raw: RawEntry, message: Message) -> Iterator[Arrival]:
    """Yield the messages of a joined one, each with an entry of its own for its dead letter."""
    for part in split(message):
        fields = {name.encode(): raw_value(value) for name, value in encode_entry(part).items()}
        yield Arrival(RawEntry(raw.entry_id, fields), part)


def _is_in_order(arrivals: Sequence[Arrival]) -> bool:
    newest: dict[tuple[int | None, str | None], int] = {}
    for arrival in arrivals:
        content = arrival.content
        source, seq = (content.job_id, content.source), first_seq_of(content)
        if seq < newest.get(source, 0):
            return False
        newest[source] = seq
    return True


def first_seq_of(content: Content) -> int:
    """Return the number of the first message in an entry; 0 if it has none."""
    return content.first if isinstance(content, Message) else content.seq or 0


def last_seq_of(content: Content) -> int:
    """Return the number of the last message in an entry; 0 if it has none."""
    return content.last if isinstance(content, Lost) else content.seq or 0


def rejection(arrival: Arrival, reason: str, detail: str, seq: int | None = None) -> Rejected:
    """Return the rejection of an entry that was decoded, with its origin."""
    content = arrival.content
    return Rejected(arrival.raw, reason, detail, content.job_id, content.attempt, content.source, seq)
