"""Decodes the wire format of Protocol Buffers: fields by number, without a schema or the protobuf package."""

from __future__ import annotations

from typing import Any, Final

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types of the Protocol Buffers encoding."""
_MAX_VARINT_BITS: Final = 70


class ProtobufError(ValueError):
    """The bytes are not a valid Protocol Buffers message."""


def fields(data: bytes) -> list[tuple[int, Any]]:
    """Return (field number, value) of each field: an int for a varint, raw bytes for the other wire types.

    Raises `ProtobufError` if the message is cut short or has an unknown wire type.
    """
    found: list[tuple[int, Any]] = []
    at, end = 0, len(data)
    while at < end:
        key = data[at]  # most keys and sizes are one byte
        key, at = (key, at + 1) if key < 0x80 else varint(data, at)
        wire_type = key & 7
        if wire_type == VARINT:
            value, at = varint(data, at)
            found.append((key >> 3, value))
            continue
        if wire_type == BYTES:
            size = data[at] if at < end else 0x80
            size, at = (size, at + 1) if size < 0x80 else varint(data, at)
        elif wire_type in {FIXED64, FIXED32}:
            size = 8 if wire_type == FIXED64 else 4
        else:
            raise ProtobufError(f"wire type {wire_type}")
        if at + size > end:
            raise ProtobufError("cut short")
        found.append((key >> 3, data[at : at + size]))
        at += size
    return found


def signed(number: int) -> int:
    """Convert the unsigned varint of an `int64` field, which is in two's complement, to a signed integer."""
    return number - (1 << 64) if number >> 63 else number


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Decode the varint at offset `at` of `data`; return its value, of 64 bits, and the offset of the next byte.

    Raises `ProtobufError` if it has no end.
    """
    if len(data) > at + 1 and data[at + 1] < 0x80 <= data[at]:  # two bytes, as most sizes of records have
        return data[at] + (data[at + 1] << 7) - 0x80, at + 2
    number = shift = 0
    while True:
        try:
            byte = data[at]
        except IndexError:
            raise ProtobufError("cut short") from None
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & (1 << 64) - 1, at
        shift += 7
        if shift > _MAX_VARINT_BITS:
            raise ProtobufError("a number without an end")
