"""One source's messages on the disk, from the cut to the ack."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from ingest.spool.folder import SourceFolder
from ingest.spool.records import Damage, framed, unframed
from ingest.spool.segments import Record, Segments
from schemas.messages import WIRE_VERSION, Entry, Logs, Metrics
from schemas.routes import KINDS, Kind

LOST: Final = "lost"
"""The encoding of a message whose bytes are damaged: workers know none of that name and keep a dead letter."""
_LOSS: Final = b"damaged in the spool of its trainer"
_EMPTY: Final[Mapping[Kind, bytes]] = {
    "logs": msgspec.msgpack.encode(Logs(log_type="stdout", lines=[], ts=[])),
    "metrics": msgspec.msgpack.encode(Metrics()),
}
"""The bodies of messages that were dropped; only these two kinds ever are."""
_DROPPED: Final = "dropped.rec"


class Dropped(msgspec.Struct, array_like=True, frozen=True):
    """Messages `first` to `last` that were given up because the spool was full, and their lines or points."""

    kind: Kind
    first: int
    last: int
    items: int


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
        self._dropped = _read_dropped(folder.path / _DROPPED)

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
        """Return message `seq` of a kind, and those that follow it in the same file.

        In the place of a dropped message there is an empty one, in the place of a damaged one its loss: nothing
        that had a number is passed over in silence.
        """
        for gone in self._dropped:
            if gone.kind == kind and gone.first <= seq <= gone.last:
                encoding, body = "msgpack", _EMPTY[kind]
                return {number: self._entry(number, encoding, body) for number in range(seq, gone.last + 1)}
        records = self._segments[kind].read(seq)
        last = records[-1].seq if records else seq
        found = {number: self._entry(number, LOST, _LOSS) for number in range(seq, last + 1)}
        return found | {record.seq: self._entry(record.seq, record.encoding, record.body) for record in records}

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


def _read_dropped(path: Path) -> list[Dropped]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    found = []
    for payload in unframed(data):
        if not isinstance(payload, Damage):
            with suppress(msgspec.MsgspecError):
                found.append(msgspec.msgpack.decode(payload, type=Dropped))
    return found
