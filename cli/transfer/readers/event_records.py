"""Reads the records of an event file of TensorBoard, and verifies their checksums."""

from __future__ import annotations

import math
import re
import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from trainwire.cli.transfer.readers.checksums import masked_crc, masked_crcs
from trainwire.ingest.hooks.tensorboard_events import DamagedEventError
from trainwire.schemas.messages import Point
from trainwire.schemas.times import seconds_to_ns

MAX_RECORD_BYTES: Final = 1 << 30
VERIFIED_BYTES: Final = 4096
"""The data of a longer record (an image) is not verified: Python computes 10 MB of CRC-32C a second."""
MAX_TAG_BYTES: Final = 127
"""Of the tags that `one_scalar` reads."""
FRAME_BYTES: Final = 16
"""Of a record: length, checksum of the length, and checksum of the data."""
_READ_BYTES: Final = 1024 * 1024
_MANY: Final = 50
_SHORT_BYTES: Final = 256
"""So many records of one length, up to this one, are verified at once."""
_HEADER: Final = struct.Struct("<QI")
_DOUBLE: Final = struct.Struct("<d")
_FLOAT: Final = struct.Struct("<f")
# wall_time, step; summary, its value, the value's tag and simple_value: lengths below 128 are one byte.
_one_scalar: Final = re.compile(
    rb"\x09(.{8})(?:\x10([\x80-\xff]{0,9}[\x00-\x7f]))?\x2a([\x00-\x7f])\x0a([\x00-\x7f])\x0a([\x00-\x7f])(.*)\x15(.{4})",
    re.DOTALL,
).fullmatch
_FOOTER: Final = struct.Struct("<I")


def records(path: Path, size: int) -> Iterator[bytes]:
    """Yield the data of each record in the first `size` bytes of a file.

    Raises `DamagedEventError` with the place of a record that is damaged or cut short, and `OSError` if the file
    cannot be read.
    """
    rest, offset = b"", 0  # what is read and no whole record, and its place in the file
    with path.open("rb") as file:
        while chunk := file.read(min(_READ_BYTES, size - offset - len(rest))):
            rest += chunk
            found, at, is_damaged = _cut(rest)
            wrong = _first_wrong(found)
            yield from (record.data for record in found[:wrong])
            if wrong < len(found):
                raise DamagedEventError(f"the record at byte {offset + found[wrong].at:,} has a wrong checksum")
            if is_damaged:
                raise DamagedEventError(f"the record at byte {offset + at:,} is damaged")
            rest, offset = rest[at:], offset + at
    if rest:
        raise DamagedEventError(f"the record at byte {offset:,} is cut short")


class _Record(NamedTuple):
    at: int
    data: bytes
    checksum: int


def _cut(block: bytes) -> tuple[list[_Record], int, bool]:
    """Return the whole records of a block, where the next one begins, and whether its length is damaged."""
    found: list[_Record] = []
    at, size = 0, len(block)
    while size - at >= FRAME_BYTES:
        length, checksum = _HEADER.unpack_from(block, at)
        if length > MAX_RECORD_BYTES or length_crc(length) != checksum:
            return found, at, True
        begin, end = at + _HEADER.size, at + _HEADER.size + length
        if end + _FOOTER.size > size:
            break
        found.append(_Record(at, block[begin:end], _FOOTER.unpack_from(block, end)[0]))
        at = end + _FOOTER.size
    return found, at, False


def _first_wrong(found: Sequence[_Record]) -> int:
    """Return the number of the first record whose data does not have its checksum; the count without any."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for number, record in enumerate(found):
        by_length[len(record.data)].append(number)
    first = len(found)
    for length, numbers in by_length.items():
        if length > VERIFIED_BYTES:
            continue
        texts = [found[number].data for number in numbers]
        is_many = len(texts) >= _MANY and 0 < length <= _SHORT_BYTES
        crcs = masked_crcs(texts) if is_many else map(masked_crc, texts)
        wrong = (number for number, crc in zip(numbers, crcs, strict=True) if found[number].checksum != crc)
        first = min(first, next(wrong, first))
    return first


@lru_cache(maxsize=4096)
def length_crc(length: int) -> int:
    """Return the checksum of a record's length; a run has few different ones."""
    return masked_crc(length.to_bytes(8, "little"))


def one_scalar(data: bytes) -> Point | None:
    """Decode an event that has one number, in the encoding that most writers use; None for all other events.

    Returns the same values as `EventDecoder`, in a fifth of the time.
    """
    found = _one_scalar(data)
    if found is None:
        return None
    time, step_bytes, summary, value, length, tag, number = found.groups()
    if not len(data) - found.start(3) - 1 == summary[0] == value[0] + 2 or len(tag) != length[0]:
        return None
    if value[0] != len(tag) + 7:
        return None
    step = 0
    for shift, byte in enumerate(step_bytes or b""):
        step |= (byte & 0x7F) << 7 * shift
    seconds = _DOUBLE.unpack(time)[0]
    if step >> 63 or not math.isfinite(seconds):
        return None
    values = {tag.decode("utf-8", "replace"): _FLOAT.unpack(number)[0]}
    return Point(ts=seconds_to_ns(seconds), step=step, values=values)
