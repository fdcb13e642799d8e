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
KIND_WITHIN_BYTES: Final = 256
"""Number of bytes of a record within which W&B writes its kind, after its number and short other fields."""
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

    Blocks (`BLOCK_BYTES`) for which `has_wanted` returns a false value are left out, except for the rest of a
    record that begins before them. The argument of `has_wanted` is a block and the beginning of the next one.

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
    kind, is_after_gap = LAST, False
    for offset, block, after in _blocks(path, size):
        if (is_after_gap or kind in (FULL, LAST)) and not has_wanted(block + after):
            is_after_gap = True
            continue
        at = 0 if offset else len(FILE_HEADER)
        while (begin := at + HEADER.size) <= len(block):
            checksum, length, kind = HEADER.unpack_from(block, at)
            end = begin + length
            data = block[begin:end]
            if not FULL <= kind <= LAST or end > BLOCK_BYTES:
                raise DamagedFileError(f"the record at byte {offset + at:,} is damaged")
            if len(data) < length:
                break
            if crc32(data, _CHECKSUMS[kind]) != checksum:
                raise DamagedFileError(f"the record at byte {offset + at:,} has a wrong checksum")
            is_after_gap = is_after_gap and kind in (MIDDLE, LAST)
            if not is_after_gap:
                yield offset + at, kind, data
            at = end
        if at < len(block) < BLOCK_BYTES and BLOCK_BYTES - at >= HEADER.size:
            raise CutShortError(f"the record at byte {offset + at:,} is cut short")


def _blocks(path: Path, size: int) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield (offset, block, data at the beginning of the next block, of a record that may begin in this one)."""
    with path.open("rb") as file:
        block, offset = file.read(min(BLOCK_BYTES, size)), 0
        if 0 < len(block) < len(FILE_HEADER):
            raise CutShortError("its header is cut short")
        if block and not block.startswith(FILE_HEADER):
            raise DamagedFileError("it does not begin as a file of W&B")
        while block:
            following = file.read(min(BLOCK_BYTES, size - offset - len(block)))
            yield offset, block, following[HEADER.size : HEADER.size + KIND_WITHIN_BYTES]
            offset, block = offset + len(block), following
