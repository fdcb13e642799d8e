"""Reads the records of a TensorBoard event file, and verifies their checksums."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

from trainwire.cli.transfer.readers.checksums import masked_crc, masked_crcs
from trainwire.ingest.hooks.tensorboard_events import DamagedEventError

MAX_RECORD_BYTES: Final = 1 << 30
VERIFIED_BYTES: Final = 4096
"""Largest record whose data is verified: Python computes only 10 MB of CRC-32C per second.

Larger records are images, which are not imported.
"""
FRAME_BYTES: Final = 16
"""Bytes of a record besides its data: length, checksum of the length, and checksum of the data."""
_READ_BYTES: Final = 1024 * 1024
_MANY: Final = 50
_SHORT_BYTES: Final = 256
"""Largest record length for which `masked_crcs` is used; it needs at least _MANY records of one length."""
_HEADER: Final = struct.Struct("<QI")
_FOOTER: Final = struct.Struct("<I")


def records(path: Path, size: int) -> Iterator[bytes]:
    """Yield the data of each record in the first `size` bytes of an event file.

    The checksum of the data is verified for records of at most VERIFIED_BYTES. Raises `DamagedEventError`, with
    its position, for a record that is damaged or incomplete, and `OSError` if the file cannot be read.
    """
    rest, offset = b"", 0  # the incomplete record at the end of the data, and its offset in the file
    with path.open("rb") as file:
        while chunk := file.read(min(_READ_BYTES, size - offset - len(rest))):
            rest += chunk
            found, checksums, at, is_damaged = _cut(rest)
            wrong = _first_wrong(found, checksums)
            yield from found[:wrong]
            if wrong < len(found):
                place = offset + sum(map(len, found[:wrong])) + FRAME_BYTES * wrong
                raise DamagedEventError(f"the record at byte {place:,} has a wrong checksum")
            if is_damaged:
                raise DamagedEventError(f"the record at byte {offset + at:,} is damaged")
            rest, offset = rest[at:], offset + at
    if rest:
        raise DamagedEventError(f"the record at byte {offset:,} is cut short")


def _cut(block: bytes) -> tuple[list[bytes], list[int], int, bool]:
    """Split a block of bytes of an event file into records.

    Returns the data and checksums of the complete records, the offset of the first incomplete record, and whether
    the length of that record is damaged.
    """
    found: list[bytes] = []
    checksums: list[int] = []
    at, size = 0, len(block)
    while size - at >= FRAME_BYTES:
        length, checksum = _HEADER.unpack_from(block, at)
        if length > MAX_RECORD_BYTES or length_crc(length) != checksum:
            return found, checksums, at, True
        begin = at + _HEADER.size
        end = begin + length
        if end + _FOOTER.size > size:
            break
        found.append(block[begin:end])
        checksums += _FOOTER.unpack_from(block, end)
        at = end + _FOOTER.size
    return found, checksums, at, False


def _first_wrong(found: Sequence[bytes], checksums: Sequence[int]) -> int:
    """Return the index of the first record with a wrong checksum, or the number of records if all are right."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for number, data in enumerate(found):
        by_length[len(data)].append(number)
    first = len(found)
    for length, numbers in by_length.items():
        if length > VERIFIED_BYTES:
            continue
        texts = [found[number] for number in numbers]
        is_many = len(texts) >= _MANY and 0 < length <= _SHORT_BYTES
        crcs = masked_crcs(texts) if is_many else map(masked_crc, texts)
        wrong = (number for number, crc in zip(numbers, crcs, strict=True) if checksums[number] != crc)
        first = min(first, next(wrong, first))
    return first


@lru_cache(maxsize=4096)
def length_crc(length: int) -> int:
    """Return the checksum of a record's length; it is cached, because a file has few different lengths."""
    return masked_crc(length.to_bytes(8, "little"))
