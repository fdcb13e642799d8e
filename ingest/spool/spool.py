"""Stores the messages of one source on the disk until they are acknowledged."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import msgspec

from trainwire.ingest.spool.folder import SourceFolder
from trainwire.ingest.spool.segments import Damage, Record, Segments, framed, unframed
from trainwire.schemas.decode_errors import DECODE_ERRORS
from trainwire.schemas.keys import KINDS, Kind
from trainwire.schemas.wire.entries import WIRE_VERSION, Entry
from trainwire.schemas.wire.messages import Logs, Metrics

RecordT = TypeVar("RecordT")

_EMPTY: Final[Mapping[Kind, bytes]] = {
    "logs": msgspec.msgpack.encode(Logs(log_type="stdout", lines=[], ts=[])),
    "metrics": msgspec.msgpack.encode(Metrics()),
}
"""The empty bodies that are sent in place of dropped messages, for the two kinds that can be dropped."""
_DROPPED: Final = "dropped.rec"
_DROPS: Final = "drops.rec"


class Dropped(msgspec.Struct, array_like=True, frozen=True):
    """A range of messages that was dropped because the spool was full; `items` counts their lines or points."""

    kind: Kind
    first: int
    last: int
    items: int


_decode_dropped = msgspec.msgpack.Decoder(Dropped).decode
_decode_drops = msgspec.msgpack.Decoder(dict[str, int]).decode


class Span(NamedTuple):
    """First and last sequence number of the messages of one kind."""

    first: int
    last: int


class Spool:
    """Writes and reads the messages of one source, and deletes acknowledged ones.

    All methods raise `OSError` for disk errors.
    """

    def __init__(self, folder: SourceFolder, limit_bytes: int) -> None:
        self.folder = folder
        self._limit_bytes = limit_bytes
        self._segments: Mapping[Kind, Segments] = {kind: Segments(folder.path, kind) for kind in KINDS}
        self._dropped = list(_records(folder.path / _DROPPED, _decode_dropped))
        self._drops = next(_records(folder.path / _DROPS, _decode_drops), {})

    @property
    def size_bytes(self) -> int:
        """The size of the messages on the disk in bytes."""
        return sum(segments.size_bytes for segments in self._segments.values())

    @property
    def is_full(self) -> bool:
        """Whether the spool has reached its size limit."""
        return self.size_bytes >= self._limit_bytes

    def spans(self) -> dict[Kind, Span]:
        """Return first and last message number of each kind that has messages; dropped messages count too."""
        found: dict[Kind, Span] = {}
        for kind, segments in self._segments.items():
            ends = [(dropped.first, dropped.last) for dropped in self._dropped if dropped.kind == kind]
            ends += [(segments.first, segments.last)] if segments.last else []
            if ends:
                found[kind] = Span(min(first for first, _ in ends), max(last for _, last in ends))
        return found

    def append(self, kind: Kind, seq: int, items: int, entry: Entry) -> None:
        """Append the next message of `kind`; `items` is the number of its lines or points."""
        encoding, body = entry["enc"], entry["body"]
        assert isinstance(encoding, str) and isinstance(body, bytes)  # noqa: S101, PT018 - as `encode_entry` makes it
        self._segments[kind].append(Record(seq, items, encoding, body))

    def read(self, kind: Kind, seq: int) -> dict[int, Entry]:
        """Return message `seq` of a kind and some messages that follow it, by number.

        Damaged and deleted messages are left out. A dropped message is returned with an empty body.
        """
        for dropped in self._dropped:
            if dropped.kind == kind and dropped.first <= seq <= dropped.last:
                encoding, body = "msgpack", _EMPTY[kind]
                return {number: self._entry(number, encoding, body) for number in range(seq, dropped.last + 1)}
        records = self._segments[kind].read(seq)
        return {record.seq: self._entry(record.seq, record.encoding, record.body) for record in records}

    def release(self, kind: Kind, acked: int) -> None:
        """Delete the files of `kind` without messages above number `acked`, except the newest file."""
        self._segments[kind].release(acked)

    def drop_oldest(self, kind: Kind, above: int) -> Dropped | None:
        """Delete the oldest file of `kind` that has only messages above number `above`.

        Return the range of its messages, or None if there is no such file.
        """
        segment = self._segments[kind].drop_oldest(above)
        if segment is None:
            return None
        dropped = Dropped(kind, segment.first, segment.last, segment.items)
        self._dropped.append(dropped)
        with (self.folder.path / _DROPPED).open("ab") as file:
            file.write(framed(msgspec.msgpack.encode(dropped)))
        return dropped

    @property
    def drops(self) -> dict[str, int]:
        """The counts of dropped lines and points, including those dropped before they were numbered."""
        return dict(self._drops)

    def note_drops(self, drops: Mapping[str, int]) -> None:
        """Write the counts of dropped lines and points to the disk, for a process that later sends this spool."""
        if drops == self._drops:
            return
        # Written in place: the counts only grow, so that a full disk has room for them once it had some.
        file = os.open(self.folder.path / _DROPS, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(file, framed(msgspec.msgpack.encode(drops)), 0)
        finally:
            os.close(file)
        self._drops = dict(drops)

    def close(self) -> None:
        """Close the files and unlock the folder, so that another process can send the messages."""
        for segments in self._segments.values():
            segments.close()
        self.folder.forget()

    def remove(self) -> None:
        """Delete the spool, because all of its messages are acknowledged."""
        for segments in self._segments.values():
            segments.close()
        self.folder.remove()

    def _entry(self, seq: int, encoding: str, body: bytes) -> Entry:
        about = self.folder.about
        return {
            "v": WIRE_VERSION,
            "job": about.job_id,
            "attempt": about.attempt,
            "source": about.source,
            "seq": seq,
            "enc": encoding,
            "body": body,
        }


def _records(path: Path, decode: Callable[[bytes], RecordT]) -> Iterator[RecordT]:
    """Yield the records of a file that can be decoded; none if the file does not exist."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    for payload in unframed(data):
        if not isinstance(payload, Damage):
            with suppress(*DECODE_ERRORS):
                yield decode(payload)
