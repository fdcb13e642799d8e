"""CRC-32C in Python: of one text, or of many of one length at once."""

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
    """Return `masked_crc` of texts of one length, for hundreds of them in a tenth of the time.

    A CRC is linear: it is the XOR of what each byte contributes by its value and its distance from the end. So the
    bytes of one position of all texts are translated and combined at once, for each byte of the CRC.
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
    """Return the register after so many zero bytes."""
    crc = _ALL
    for _ in range(length):
        crc = _TABLE[crc & 0xFF] ^ crc >> 8
    return crc


@cache
def _contributions(distance: int) -> tuple[bytes, ...]:
    """Return for each byte of the CRC what the values of a byte so far from the end contribute to it."""
    crcs = _shifted(distance)
    return tuple(bytes(crc >> plane & 0xFF for crc in crcs) for plane in _PLANES)


@cache
def _shifted(distance: int) -> list[int]:
    if not distance:
        return _TABLE
    return [_TABLE[crc & 0xFF] ^ crc >> 8 for crc in _shifted(distance - 1)]


@cache
def _pairs() -> list[int]:
    """Return the table for two bytes at once: with it Python takes half the time. It is made in 20 ms."""
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
