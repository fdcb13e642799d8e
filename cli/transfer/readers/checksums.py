"""CRC-32C in pure Python, of one byte string or of many with the same length at once."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from typing import Final

_ALL: Final = 0xFFFFFFFF
_PLANES: Final = (0, 8, 16, 24)


def masked_crc(data: bytes) -> int:
    """Return the CRC-32C of `data`, masked as in TensorFlow's record files."""
    crc, table, pairs = _ALL, _TABLE, _pairs()
    length = len(data)
    for pair in struct.unpack_from(f"<{length // 2}H", data):
        crc = pairs[(crc ^ pair) & 0xFFFF] ^ (crc >> 16)
    if length % 2:
        crc = table[(crc ^ data[-1]) & 0xFF] ^ (crc >> 8)
    return _masked(crc ^ _ALL)


def masked_crcs(texts: Sequence[bytes]) -> list[int]:
    """Return the `masked_crc` of each of many byte strings that all have the same length.

    For hundreds of strings this is ten times as fast as calls of `masked_crc`. A CRC is linear: it is the XOR of a
    contribution of each byte, which depends on the byte's value and its distance from the end. The bytes at one
    position of all strings are therefore translated and combined at once.
    """
    length, count = len(texts[0]), len(texts)
    joined = b"".join(texts)
    sums = [0, 0, 0, 0]
    for position in range(length):
        column = joined[position::length]
        for plane, table in enumerate(_contributions(length - 1 - position)):
            sums[plane] ^= int.from_bytes(column.translate(table), "little")
    planes = [each.to_bytes(count, "little") for each in sums]
    start = _zeros(length) ^ _ALL
    return [
        _masked(start ^ (first | second << 8 | third << 16 | fourth << 24))
        for first, second, third, fourth in zip(*planes, strict=True)
    ]


def _masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & _ALL


@cache
def _zeros(length: int) -> int:
    """Return the CRC register after it has processed `length` zero bytes."""
    crc = _ALL
    for _ in range(length):
        crc = _TABLE[crc & 0xFF] ^ crc >> 8
    return crc


@cache
def _contributions(distance: int) -> tuple[bytes, ...]:
    """Return four tables for `bytes.translate`, one for each byte of the CRC.

    A table maps the value of a data byte that has `distance` bytes behind it to the XOR that this data byte
    contributes to that byte of the CRC.
    """
    crcs = _shifted(distance)
    return tuple(bytes(crc >> plane & 0xFF for crc in crcs) for plane in _PLANES)


@cache
def _shifted(distance: int) -> list[int]:
    if not distance:
        return _TABLE
    return [_TABLE[crc & 0xFF] ^ crc >> 8 for crc in _shifted(distance - 1)]


@cache
def _pairs() -> list[int]:
    """Return a lookup table that processes two bytes at once, in half the time; it takes 20 ms to compute."""
    return [_TABLE[pair >> 8 ^ _TABLE[pair & 0xFF] & 0xFF] ^ _TABLE[pair & 0xFF] >> 8 for pair in range(1 << 16)]


def _table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


_TABLE: Final = _table()
