"""Blocks of a metric's points, as stored in `metric_blocks`: their encoding, and their reduction to extremes.

The points of one metric of one attempt and rank are cut into blocks of `BLOCK_POINTS` (level 0). Four blocks of a
level are reduced to one of the next: `reduced` keeps the lowest and the highest value of each piece, its first
NaN, and the first and the last point. A chart thus needs a few points of a higher level instead of all points.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import isnan
from threading import local
from typing import Any, Final, NamedTuple, TypeAlias

import zstandard

from trainwire.schemas.tables import ROLLUPS_CURSOR

CURSOR: Final = ROLLUPS_CURSOR
BLOCK_POINTS: Final = 128
FAN_OUT: Final = 4
"""Blocks of a level that one block of the next level covers."""
TAIL: Final = -1
"""The level of the block with the points after the last full block of level 0; its number is 0."""
ABSENT: Final = -(2**63)
"""A step or epoch that a point does not have; valid ones are greater."""
_PIECES: Final = 64
_HEADER: Final = struct.Struct("<BI")
_BOUNDS: Final = struct.Struct("<9qB")
_TYPES: Final = "qqqqd"
_INTEGERS: Final = 4
"""Columns of integers in `Points`; the values follow."""
_NUMBER_BYTES: Final = 8
_VERSION: Final = 1
_NO_TIME: Final = (2**63 - 1, ABSENT)


Column: TypeAlias = "array[Any]"
"""Integers, or as values floats."""


class Points(NamedTuple):
    """Points of one series in the order of their rows, as columns; `times` in microseconds since 1970."""

    seqs: Column
    steps: Column
    times: Column
    epochs: Column
    values: Column

    def part(self, begin: int, end: int) -> Points:
        """Return the points from `begin` to before `end`."""
        return Points(*(column[begin:end] for column in self))

    def at(self, indexes: Iterable[int]) -> Points:
        """Return the points with these indexes."""
        chosen = list(indexes)
        return Points(*(array(column.typecode, [column[index] for index in chosen]) for column in self))


class Range(NamedTuple):
    """The lowest and the highest value of an axis, and whether points without a value are among those covered."""

    low: int
    high: int
    has_absent: bool = False


class Bounds(NamedTuple):
    """What a block covers: the number of points, their rows, and their ranges on each axis."""

    points: int
    first_seq: int
    last_seq: int
    steps: Range
    times: Range
    epochs: Range


def joined(parts: Iterable[Points]) -> Points:
    """Return consecutive points as one."""
    columns = _columns()
    for part in parts:
        for column, more in zip(columns, part, strict=True):
            column.extend(more)
    return Points(*columns)


def bounds_of(points: Points) -> Bounds:
    """Return the bounds of at least one point."""
    return Bounds(
        len(points.seqs),
        points.seqs[0],
        points.seqs[-1],
        _range_of(points.steps),
        Range(min(points.times), max(points.times)),
        _range_of(points.epochs),
    )


def covering(parts: Sequence[Bounds]) -> Bounds:
    """Return the bounds of consecutive blocks together."""
    axes = (
        Range(min(one.low for one in axis), max(one.high for one in axis), any(one.has_absent for one in axis))
        for axis in zip(*(part[3:] for part in parts), strict=True)
    )
    return Bounds(sum(part.points for part in parts), parts[0].first_seq, parts[-1].last_seq, *axes)


def reduced(points: Points) -> Points:
    """Return the extremes of equal pieces of these points, and the first and the last point."""
    count = len(points.seqs)
    cuts = [count * piece // _PIECES for piece in range(_PIECES + 1)]
    return points.at(extremes(points.values, cuts))


def extremes(values: Column, cuts: Sequence[int]) -> list[int]:
    """Return the indexes of the lowest and highest value and the first NaN of each piece, the first and the last.

    Piece n has the values from `cuts[n]` to before `cuts[n + 1]`. Of equal values the first one is returned.
    """
    may_have_nan = isnan(sum(values))  # NaN, or infinities of both signs
    kept = {cuts[0], cuts[-1] - 1}
    for begin, end in pairwise(cuts):
        if begin == end:
            continue
        piece = values[begin:end]
        numbers: Sequence[float] = piece
        if may_have_nan:
            numbers = [value for value in piece if not isnan(value)]
            if len(numbers) < len(piece):
                kept.add(begin + next(index for index, value in enumerate(piece) if isnan(value)))
            if not numbers:
                continue
        kept.add(begin + piece.index(min(numbers)))
        kept.add(begin + piece.index(max(numbers)))
    return sorted(kept)


def equal_cuts(seqs: Sequence[int], pieces: int) -> list[int]:
    """Return the indexes at which the rows from the first to the last `seq` are cut into equal pieces."""
    first, span = seqs[0], seqs[-1] - seqs[0] + 1
    inner = (bisect_left(seqs, first + -(-span * piece // pieces)) for piece in range(1, pieces))
    return [0, *inner, len(seqs)]


def encode_rows(points: Points) -> bytes:
    """Encode all columns except the values; series that were logged together have the same."""
    data = _compress(b"".join(column.tobytes() for column in points[:_INTEGERS]))
    return _HEADER.pack(_VERSION, len(data)) + data


def encode_values(points: Points) -> bytes:
    """Encode the values, which follow the other columns."""
    return _compress(points.values.tobytes())


def decode_points(data: bytes) -> Points:
    """Decode the columns and the values of a block."""
    version, size = _HEADER.unpack_from(data)
    if version != _VERSION:
        raise ValueError(f"metric_blocks: encoding {version} is unknown, update this process")
    integers = _decompress(data[_HEADER.size : _HEADER.size + size])
    values = _decompress(data[_HEADER.size + size :])
    columns = (integers[begin : begin + len(values)] for begin in range(0, len(integers), len(values) or 1))
    arrays = _columns()
    for column, numbers in zip(arrays, (*columns, values), strict=False):
        column.frombytes(numbers)
    return Points(*arrays)


def _columns() -> list[Column]:
    return [array(typecode) for typecode in _TYPES]


def encode_bounds(bounds: Bounds) -> bytes:
    """Encode the bounds of a block."""
    steps, times, epochs = bounds.steps, bounds.times, bounds.epochs
    absent = steps.has_absent | epochs.has_absent << 1
    ranges = (steps.low, steps.high, times.low, times.high, epochs.low, epochs.high)
    return _BOUNDS.pack(*bounds[:3], *ranges, absent)


def decode_bounds(data: bytes) -> Bounds:
    """Decode the bounds of a block."""
    count, first, last, low_step, high_step, low_time, high_time, low_epoch, high_epoch, absent = _BOUNDS.unpack(
        data
    )
    steps = Range(low_step, high_step, bool(absent & 1))
    epochs = Range(low_epoch, high_epoch, bool(absent & 2))
    return Bounds(count, first, last, steps, Range(low_time, high_time), epochs)


def _range_of(column: Column) -> Range:
    low = min(column)
    if low != ABSENT:
        return Range(low, max(column))
    present = [number for number in column if number != ABSENT]
    return Range(min(present, default=_NO_TIME[0]), max(column), has_absent=True)


class _Coders(local):
    """zstd's coders of one thread: they cannot be shared."""

    def __init__(self) -> None:
        self.compress = zstandard.ZstdCompressor(level=1).compress
        self.decompress = zstandard.ZstdDecompressor().decompress


_coders: Final = _Coders()


def _compress(numbers: bytes) -> bytes:
    """Compress numbers of 8 bytes (little endian): their first bytes come first, then their second bytes ..."""
    return _coders.compress(b"".join(numbers[place::_NUMBER_BYTES] for place in range(_NUMBER_BYTES)))


def _decompress(data: bytes) -> bytearray:
    by_place = _coders.decompress(data)
    count = len(by_place) // _NUMBER_BYTES
    numbers = bytearray(len(by_place))
    for place in range(_NUMBER_BYTES):
        numbers[place::_NUMBER_BYTES] = by_place[place * count : (place + 1) * count]
    return numbers
