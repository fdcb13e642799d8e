"""Reads the records of a `.wandb` file, which has LevelDB's log format with another header and checksum.

See `doc/log_format.md` of LevelDB and `wandb/sdk/internal/datastore.py` (wandb 0.16).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final
from zlib import crc32

FILE_HEADER: Final = b":W&B" + struct.pack("<HB", 0xBEE1, 0)
BLOCK_BYTES: Final = 32 * 1024
MAX_RECORD_BYTES: Final = 256 * 1024 * 1024
HEADER: Final = struct.Struct("<IHB")  # checksum, length, and the part of a record that follows
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
_CHECKSUMS: Final = [crc32(bytes((kind,))) for kind in range(LAST + 1)]
"""CRC-32 of each kind byte, with which the checksum of a record's data starts."""


class DamagedFileError(ValueError):
    """The file is damaged, and its rest cannot be read."""


class CutShortError(DamagedFileError):
    """The last record of the file is incomplete: the process that writes it was killed, or is still writing."""


def wandb_records(
    path: Path, size: int, has_wanted: Callable[[bytes], object] = lambda _: True
) -> Iterator[bytes]:
    """Yield each record in the first `size` bytes of a `.wandb` file, after its checksum was verified.

    Where `has_wanted` returns a false value for a block (`BLOCK_BYTES`), the records inside it are verified, but
    not yielded.

    Raises `DamagedFileError`, with its position, for a record that is damaged or incomplete, and `OSError` if the
    file cannot be read.
    """
    parts: list[bytes] = []
    length, began = 0, 0
    for at, kind, data in _parts(path, size, has_wanted):
        if kind == FULL and not parts:
            yield data
            continue
        if (kind in (FULL, FIRST)) == bool(parts):
            raise DamagedFileError(f"the record at byte {at:,} is out of order")
        began = began if parts else at
        parts.append(data)
        length += len(data)
        if length > MAX_RECORD_BYTES:
            raise DamagedFileError(f"the record at byte {began:,} has more than {MAX_RECORD_BYTES:,} bytes")
        if kind in (FULL, LAST):
            yield b"".join(parts)
            parts, length = [], 0
    if parts:
        raise CutShortError(f"the record at byte {began:,} is cut short")


def _parts(path: Path, size: int, has_wanted: Callable[[bytes], object]) -> Iterator[tuple[int, int, bytes]]:
    """Yield (offset, kind, data) of each part of a record; zeros at the end of a block are skipped."""
    kind_before = LAST
    with path.open("rb") as file:
        offset, at = 0, len(FILE_HEADER)
        while block := file.read(min(BLOCK_BYTES, size - offset)):
            if offset == 0 and len(block) < at:
                raise CutShortError("its header is cut short")
            if offset == 0 and block[:at] != FILE_HEADER:
                raise DamagedFileError("it does not begin as a file of W&B")
            is_wanted = has_wanted(block)
            while (end := at + HEADER.size) <= len(block):
                checksum, length, kind = HEADER.unpack_from(block, at)
                data = block[end : end + length]
                if not FULL <= kind <= LAST or end + length > BLOCK_BYTES:
                    raise DamagedFileError(f"the record at byte {offset + at:,} is damaged")
                if len(data) < length:
                    break
                if crc32(data, _CHECKSUMS[kind]) != checksum:
                    raise DamagedFileError(f"the record at byte {offset + at:,} has a wrong checksum")
                if is_wanted or kind != FULL or kind_before in (FIRST, MIDDLE):
                    yield offset + at, kind, data
                kind_before = kind
                at = end + length
            if at < len(block) < BLOCK_BYTES and BLOCK_BYTES - at >= HEADER.size:
                raise CutShortError(f"the record at byte {offset + at:,} is cut short")
            offset, at = offset + len(block), 0
