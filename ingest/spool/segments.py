"""Stores the messages of one kind in files of about 1 MiB, which are deleted once their messages are acknowledged.

A file is named by its kind and the number of its first message. Each file is a sequence of records with
checksums, so that a crash or a disk error damages single records only.
"""

from __future__ import annotations

import os
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import msgspec

from trainwire.schemas.decode_errors import DECODE_ERRORS
from trainwire.schemas.keys import Kind

MAGIC: Final = b"\xf5\x1dTW"
_HEADER: Final = struct.Struct("<4sII")  # the magic, the payload's length, the checksum of both length and payload
_LENGTH: Final = struct.Struct("<I")
OVERHEAD_BYTES: Final = _HEADER.size
SEGMENT_BYTES: Final = 1024 * 1024
_SUFFIX: Final = ".seg"
_DIGITS: Final = 20


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes between two valid records: a record that was written incompletely or has changed since."""

    raw: bytes


class Record(msgspec.Struct, array_like=True, frozen=True):
    """One message in a file; its body is encoded as in a stream entry.

    `items` is the number of its lines or points.
    """

    seq: int
    items: int
    encoding: str
    body: bytes


@dataclass(slots=True)
class Segment:
    """Describes one file of messages `first` to `last`; some of these may not be in it."""

    path: Path
    first: int
    last: int
    count: int = 0
    items: int = 0
    size_bytes: int = 0

    def note(self, record: Record) -> None:
        """Update the counts for a message that was appended to the file."""
        self.last = record.seq
        self.count += 1
        self.items += record.items


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


class Segments:
    """The files of one kind in the folder of a source. All methods raise `OSError` for disk errors."""

    def __init__(self, folder: Path, kind: Kind) -> None:
        self._folder = folder
        self._kind = kind
        names = f"{kind}-{'[0-9]' * _DIGITS}{_SUFFIX}"
        found = [self._found(path) for path in sorted(folder.glob(names))]
        for segment, following in pairwise(found):
            if not segment.last:  # completely damaged: only the numbers of its messages are known
                segment.last = following.first - 1
        self._segments = [segment for segment in found if segment.last]
        self.size_bytes = sum(segment.size_bytes for segment in self._segments)
        self._file: int | None = None

    @property
    def first(self) -> int:
        """The lowest sequence number of a message in the files; 0 if there are none."""
        return self._segments[0].first if self._segments else 0

    @property
    def last(self) -> int:
        """The highest sequence number of a message in the files; 0 if there are none."""
        return self._segments[-1].last if self._segments else 0

    @property
    def count(self) -> int:
        """The number of messages in the files that can be read."""
        return sum(segment.count for segment in self._segments)

    def append(self, record: Record) -> None:
        """Append one message to the newest file.

        It survives a kill of this process, but not a power failure.
        """
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
        """Return messages from number `seq` on: those in the file with `seq`, or else in the next file."""
        at = bisect_right(self._segments, seq, key=lambda segment: segment.first) - 1
        for segment in self._segments[max(at, 0) :]:
            with suppress(FileNotFoundError):
                if found := [record for record in _records(segment.path) if record.seq >= seq]:
                    return found
        return []

    def release(self, acked: int) -> None:
        """Delete the files that have no messages above `acked`; the newest file is always kept."""
        while len(self._segments) > 1 and self._segments[0].last <= acked:
            self._remove(self._segments[0])

    def drop_oldest(self, above: int) -> Segment | None:
        """Delete the oldest file whose messages are all above number `above`, and return it.

        The newest file is never deleted. Returns None if there is no such file.
        """
        segment = next((segment for segment in self._segments[:-1] if segment.first > above), None)
        if segment is not None:
            self._remove(segment)
        return segment

    def close(self) -> None:
        """Close the newest file, which is open for writing."""
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
            while written < len(data):  # a full disk writes a part of it, then fails
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
        """Read a file of another process and return its description; `last` is 0 if no message is readable."""
        segment = Segment(path, int(path.stem.rpartition("-")[2]), 0, size_bytes=path.stat().st_size)
        for record in _records(path):
            segment.note(record)
        return segment


def _records(path: Path) -> Iterator[Record]:
    for payload in unframed(path.read_bytes()):
        if not isinstance(payload, Damage):
            with suppress(*DECODE_ERRORS):  # written by another version: treated as damaged
                yield _decode(payload)


def framed(payload: bytes) -> bytes:
    """Return `payload` as a record of a file: a header with length and checksum, then `payload`."""
    return _HEADER.pack(MAGIC, len(payload), _checksum(payload)) + payload


def unframed(data: bytes) -> Iterator[bytes | Damage]:
    """Yield the payloads of all records in `data` in order, and the damaged bytes between them."""
    begin = damaged_from = 0
    while (begin := data.find(MAGIC, begin)) >= 0:
        payload = _payload_at(data, begin)
        if payload is None:
            begin += 1
            continue
        if damaged_from < begin:
            yield Damage(data[damaged_from:begin])
        yield payload
        begin = damaged_from = begin + OVERHEAD_BYTES + len(payload)
    if damaged_from < len(data):
        yield Damage(data[damaged_from:])


def _payload_at(data: bytes, begin: int) -> bytes | None:
    """Return the payload of the record at offset `begin`; None if no complete record begins there."""
    if begin + OVERHEAD_BYTES > len(data):
        return None
    _, length, checksum = _HEADER.unpack_from(data, begin)
    payload = data[begin + OVERHEAD_BYTES : begin + OVERHEAD_BYTES + length]
    return payload if len(payload) == length and _checksum(payload) == checksum else None


def _checksum(payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_LENGTH.pack(len(payload))))
