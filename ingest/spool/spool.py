"""One source's messages on the disk, from the cut to the ack."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from trainwire.ingest.spool.folder import SourceFolder
from trainwire.ingest.spool.records import Damage, framed, unframed
from trainwire.ingest.spool.segments import Record, Segments
from trainwire.schemas.keys import KINDS, Kind
from trainwire.schemas.messages import Logs, Metrics
from trainwire.schemas.wire import WIRE_VERSION, Entry

RecordT = TypeVar("RecordT")

_EMPTY: Final[Mapping[Kind, bytes]] = {
    "logs": msgspec.msgpack.encode(Logs(log_type="stdout", lines=[], ts=[])),
    "metrics": msgspec.msgpack.encode(Metrics()),
}
"""The bodies of messages that were dropped; only these two kinds ever are."""
_DROPPED: Final = "dropped.rec"
_DROPS: Final = "drops.rec"


class Dropped(msgspec.Struct, array_like=True, frozen=True):
    """Messages `first` to `last` that were given up because the spool was full, and their lines or points."""

    kind: Kind
    first: int
    last: int
    items: int


_decode_dropped = msgspec.msgpack.Decoder(Dropped).decode
_decode_drops = msgspec.msgpack.Decoder(dict[str, int]).decode


@dataclass(frozen=True)
class Span:
    """Which messages of a kind may be here: `first` to `last`."""

    first: int
    last: int


class Spool:
    """Appends, reads back, lets go of what is acked. Raises `OSError` as the disk does."""

    def __init__(self, folder: SourceFolder, limit_bytes: int) -> None:
        self.folder = folder
        self._limit_bytes = limit_bytes
        self._segments: Mapping[Kind, Segments] = {kind: Segments(folder.path, kind) for kind in KINDS}
        self._dropped = list(_records(folder.path / _DROPPED, _decode_dropped))
        self._drops = next(_records(folder.path / _DROPS, _decode_drops), {})

    @property
    def size_bytes(self) -> int:
        """What the messages take on the disk."""
        return sum(segments.size_bytes for segments in self._segments.values())

    @property
    def is_full(self) -> bool:
        """Tell whether it has reached its limit."""
        return self.size_bytes >= self._limit_bytes

    def spans(self) -> dict[Kind, Span]:
        """Return which messages of each kind are here, those that were dropped included."""
        found: dict[Kind, Span] = {}
        for kind, segments in self._segments.items():
            ends = [(gone.first, gone.last) for gone in self._dropped if gone.kind == kind]
            ends += [(segments.first, segments.last)] if segments.last else []
            if ends:
                found[kind] = Span(min(first for first, _ in ends), max(last for _, last in ends))
        return found

    def append(self, kind: Kind, seq: int, items: int, entry: Entry) -> None:
        """Write one message, the next of its kind."""
        encoding, body = entry["enc"], entry["body"]
        assert isinstance(encoding, str) and isinstance(body, bytes)  # noqa: S101, PT018 - as `encode_entry` makes it
        self._segments[kind].append(Record(seq, items, encoding, body))

    def read(self, kind: Kind, seq: int) -> dict[int, Entry]:
        """Return message `seq` of a kind, and some that follow it; one that is damaged or deleted is left out.

        In the place of a dropped message there is an empty one.
        """
        for gone in self._dropped:
            if gone.kind == kind and gone.first <= seq <= gone.last:
                encoding, body = "msgpack", _EMPTY[kind]
                return {number: self._entry(number, encoding, body) for number in range(seq, gone.last + 1)}
        records = self._segments[kind].read(seq)
        return {record.seq: self._entry(record.seq, record.encoding, record.body) for record in records}

    def release(self, kind: Kind, acked: int) -> None:
        """Remove what is committed in Postgres: all of a kind up to `acked`."""
        self._segments[kind].release(acked)

    def drop_oldest(self, kind: Kind, above: int) -> Dropped | None:
        """Give up the oldest megabyte of a kind above a seq; None where there is none that can go."""
        segment = self._segments[kind].drop_oldest(above)
        if segment is None:
            return None
        gone = Dropped(kind, segment.first, segment.last, segment.items)
        self._dropped.append(gone)
        with (self.folder.path / _DROPPED).open("ab") as file:
            file.write(framed(msgspec.msgpack.encode(gone)))
        return gone

    @property
    def drops(self) -> dict[str, int]:
        """How much of what was dropped in all, as far as is known here, before it had a number included."""
        return dict(self._drops)

    def note_drops(self, drops: Mapping[str, int]) -> None:
        """Keep how much of what was dropped so far, for who sends what a killed process has left."""
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
        """Leave everything to who comes next."""
        for segments in self._segments.values():
            segments.close()
        self.folder.forget()

    def remove(self) -> None:
        """Remove everything: all of it is acked."""
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
    """Yield the records of a file; nothing where there is none, and nothing for what is damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    for payload in unframed(data):
        if not isinstance(payload, Damage):
            with suppress(msgspec.MsgspecError):
                yield decode(payload)
