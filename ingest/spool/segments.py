"""The messages of one kind in files of a megabyte, named by their first seq and removed once acked."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import msgspec

from trainwire.ingest.spool.records import Damage, framed, unframed
from trainwire.schemas.keys import Kind

SEGMENT_BYTES: Final = 1024 * 1024
_SUFFIX: Final = ".seg"
_DIGITS: Final = 20


class Record(msgspec.Struct, array_like=True, frozen=True):
    """One numbered message, encoded as in an entry; `items` is how many lines or points it carries."""

    seq: int
    items: int
    encoding: str
    body: bytes


@dataclass(slots=True)
class Segment:
    """One file: messages `first` to `last`, of which a few may be missing."""

    path: Path
    first: int
    last: int
    count: int = 0
    items: int = 0
    size_bytes: int = 0

    def note(self, record: Record) -> None:
        """Count a message, the next of the file."""
        self.last = record.seq
        self.count += 1
        self.items += record.items


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


class Segments:
    """The files of one kind in a source's folder. Raises `OSError` as the disk does."""

    def __init__(self, folder: Path, kind: Kind) -> None:
        self._folder = folder
        self._kind = kind
        names = f"{kind}-{'[0-9]' * _DIGITS}{_SUFFIX}"
        found = [self._found(path) for path in sorted(folder.glob(names))]
        for segment, following in pairwise(found):
            if not segment.last:  # damaged from end to end: its messages are known by their numbers alone
                segment.last = following.first - 1
        self._segments = [segment for segment in found if segment.last]
        self.size_bytes = sum(segment.size_bytes for segment in self._segments)
        self._file: int | None = None

    @property
    def first(self) -> int:
        """The lowest seq that is here; 0 where there is none."""
        return self._segments[0].first if self._segments else 0

    @property
    def last(self) -> int:
        """The highest seq that is here; 0 where there is none."""
        return self._segments[-1].last if self._segments else 0

    @property
    def count(self) -> int:
        """How many messages are here and can be read."""
        return sum(segment.count for segment in self._segments)

    def append(self, record: Record) -> None:
        """Write one message behind the others; it then survives this process, not a power cut."""
        data = framed(_encode(record))
        if self._file is None or self._segments[-1].size_bytes >= SEGMENT_BYTES:
            self._begin(record.seq)
        assert self._file is not None  # noqa: S101 - just begun
        segment = self._segments[-1]
        try:
            self._write(self._file, data, segment.size_bytes)
        except OSError:
            if not segment.last:
                self._remove(segment)
            raise
        segment.note(record)
        segment.size_bytes += len(data)
        self.size_bytes += len(data)

    def read(self, seq: int) -> list[Record]:
        """Return the messages from `seq` on that its file has, or the next file with any; empty where none has."""
        at = bisect_right(self._segments, seq, key=lambda segment: segment.first) - 1
        for segment in self._segments[max(at, 0) :]:
            with suppress(FileNotFoundError):
                if found := [record for record in _records(segment.path) if record.seq >= seq]:
                    return found
        return []

    def release(self, acked: int) -> None:
        """Remove the files that hold nothing above `acked`; the one that is written to stays."""
        while len(self._segments) > 1 and self._segments[0].last <= acked:
            self._remove(self._segments[0])

    def drop_oldest(self, above: int) -> Segment | None:
        """Remove the oldest file with messages above a seq only, but not the one that is written to."""
        segment = next((segment for segment in self._segments[:-1] if segment.first > above), None)
        if segment is not None:
            self._remove(segment)
        return segment

    def close(self) -> None:
        """Write no more."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _begin(self, seq: int) -> None:
        path = self._folder / f"{self._kind}-{seq:0{_DIGITS}d}{_SUFFIX}"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self.close()
        self._file = file
        self._segments.append(Segment(path, seq, 0))

    def _write(self, file: int, data: bytes, at: int) -> None:
        written = 0
        try:
            while written < len(data):  # what a full disk takes of it is less, and then an error
                written += os.pwrite(file, data[written:], at + written)
        except OSError:
            os.ftruncate(file, at)
            raise

    def _remove(self, segment: Segment) -> None:
        if segment is self._segments[-1]:
            self.close()
        segment.path.unlink(missing_ok=True)
        self._segments.remove(segment)
        self.size_bytes -= segment.size_bytes

    def _found(self, path: Path) -> Segment:
        """Describe a file that another process has left; without one readable message its `last` is 0."""
        segment = Segment(path, int(path.stem.rpartition("-")[2]), 0, size_bytes=path.stat().st_size)
        for record in _records(path):
            segment.note(record)
        return segment


def _records(path: Path) -> Iterator[Record]:
    for payload in unframed(path.read_bytes()):
        if not isinstance(payload, Damage):
            with suppress(msgspec.MsgspecError):  # of a version that writes other records: as good as damaged
                yield _decode(payload)
