"""Records in a file, each with a checksum: whatever a crash or a bad disk leaves behind, the others are found."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

MAGIC: Final = b"\xf5\x1dTW"
_HEADER: Final = struct.Struct("<4sII")  # the magic, the payload's length, the checksum of both length and payload
_LENGTH: Final = struct.Struct("<I")
OVERHEAD_BYTES: Final = _HEADER.size


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes that are no record: torn by a crash, or changed since they were written."""

    raw: bytes


def framed(payload: bytes) -> bytes:
    """Return the record of a payload."""
    return _HEADER.pack(MAGIC, len(payload), _checksum(payload)) + payload


def unframed(data: bytes) -> Iterator[bytes | Damage]:
    """Yield the payloads of all records in order, and what lies between them."""
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
    """Return the payload of the record that begins here, None where there is no whole one."""
    if begin + OVERHEAD_BYTES > len(data):
        return None
    _, length, checksum = _HEADER.unpack_from(data, begin)
    payload = data[begin + OVERHEAD_BYTES : begin + OVERHEAD_BYTES + length]
    return payload if len(payload) == length and _checksum(payload) == checksum else None


def _checksum(payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_LENGTH.pack(len(payload))))
