"""The encoding of metric points in `metric_blocks`, and their reduction to minima and maxima.

The points of one metric of one attempt and rank are divided into blocks of `BLOCK_POINTS` (level 0). Four blocks
of one level are reduced to one block of the next level: `reduced` keeps the minimum, the maximum and the first NaN
of each section, and the first and the last point. A chart thus needs a few points of a higher level instead of all
points.
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

BLOCK_POINTS: Final = 128
FAN_OUT: Final = 4
"""Number of blocks of one level that one block of the next level covers."""
TAIL: Final = -1
"""Level of the single block with the points after the last full block of level 0; its number is 0."""
ABSENT: Final = -(2**63)
"""Value of `steps` and `epochs` for a point without a step or epoch; valid values are greater."""
_PIECES: Final = 64
_HEADER: Final = struct.Struct("<BI")
_BOUNDS: Final = struct.Struct("<9qB")
_TYPES: Final = "qqqqd"
_INTEGERS: Final = 4
"""Number of integer columns in `Points`; the column of values follows."""
_NUMBER_BYTES: Final = 8
_VERSION: Final = 1
_NO_TIME: Final = (2**63 - 1, ABSENT)


Column: TypeAlias = "array[Any]"
"""An array of 64-bit integers, or of doubles for metric values."""
_Rows: TypeAlias = tuple[Column, Column, Column, Column]
"""The columns of `Points` before the values."""


class Points(NamedTuple):
    """Points of one metric series as columns, in the order of rows; `times` are in microseconds since 1970."""

    seqs: Column
    steps: Column
    times: Column
    epochs: Column
    values: Column

    def part(self, begin: int, end: int) -> Points:
        """Return the points with indexes from `begin` to before `end`."""
        return Points(*(column[begin:end] for column in self))

    def at(self, indexes: Iterable[int]) -> Points:
        """Return the points at these indexes."""
        chosen = list(indexes)
        return Points(*(array(column.typecode, [column[index] for index in chosen]) for column in self))


class Range(NamedTuple):
    """The smallest and largest value on an axis (step, time or epoch) in a block.

    `has_absent` is True if some points of the block have no value on this axis; if none has one, `low` > `high`.
    """

    low: int
    high: int
    has_absent: bool = False


class Bounds(NamedTuple):
    """The number of points that a block covers, and their ranges of `seq`, step, time and epoch."""

    points: int
    first_seq: int
    last_seq: int
    steps: Range
    times: Range
    epochs: Range


def joined(parts: Iterable[Points]) -> Points:
    """Concatenate consecutive parts of a series."""
    columns = [array(typecode) for typecode in _TYPES]
    for part in parts:
        for column, more in zip(columns, part, strict=True):
            column.extend(more)
    return Points(*columns)


def bounds_of(points: Points) -> Bounds:
    """Return the bounds of `points`, which must not be empty."""
    return Bounds(
        len(points.seqs),
        points.seqs[0],
        points.seqs[-1],
        _range_of(points.steps),
        Range(min(points.times), max(points.times)),
        _range_of(points.epochs),
    )


def covering(parts: Sequence[Bounds]) -> Bounds:
    """Return the joint bounds of consecutive blocks."""
    axes = (
        Range(min(one.low for one in axis), max(one.high for one in axis), any(one.has_absent for one in axis))
        for axis in zip(*(part[3:] for part in parts), strict=True)
    )
    return Bounds(sum(part.points for part in parts), parts[0].first_seq, parts[-1].last_seq, *axes)


def reduced(points: Points) -> Points:
    """Reduce points to the minimum, maximum and first NaN of each section, and the first and last point.

    There are _PIECES sections, whose numbers of points differ by at most one.
    """
    count = len(points.seqs)
    cuts = [count * piece // _PIECES for piece in range(_PIECES + 1)]
    return points.at(extremes(points.values, cuts))


def extremes(values: Column, cuts: Sequence[int]) -> list[int]:
    """Return the indexes of the minimum, maximum and first NaN of each section, and of the first and last value.

    Section n has the values from `cuts[n]` to before `cuts[n + 1]`. Of equal values the first one is used.
    """
    numbers = values.tolist()  # slices of a list create no new Python numbers
    may_have_nan = isnan(sum(numbers))  # NaN, or infinities of both signs
    kept = {cuts[0], cuts[-1] - 1}
    for begin, end in pairwise(cuts):
        if begin == end:
            continue
        piece = numbers[begin:end]
        present = piece
        if may_have_nan:
            present = [value for value in piece if not isnan(value)]
            if len(present) < len(piece):
                kept.add(begin + next(index for index, value in enumerate(piece) if isnan(value)))
            if not present:
                continue
        kept.add(begin + piece.index(min(present)))
        kept.add(begin + piece.index(max(present)))
    return sorted(kept)


def equal_cuts(seqs: Sequence[int], pieces: int) -> list[int]:
    """Return the indexes that divide the rows into `pieces` sections with equal ranges of `seq`.

    The first index is 0, and the last is the number of rows.
    """
    first, span = seqs[0], seqs[-1] - seqs[0] + 1
    inner = (bisect_left(seqs, first + -(-span * piece // pieces)) for piece in range(1, pieces))
    return [0, *inner, len(seqs)]


def encode_rows(points: Points) -> bytes:
    """Encode the columns of points except the values: `seq`, step, time and epoch.

    Metrics that were logged together have the same encoded columns.
    """
    data = _compress(b"".join(column.tobytes() for column in points[:_INTEGERS]))
    return _HEADER.pack(_VERSION, len(data)) + data


def encode_values(points: Points) -> bytes:
    """Encode the values of points; a block stores them after the columns of `encode_rows`."""
    return _compress(points.values.tobytes())


class PointsDecoder:
    """Decodes the points of blocks; the columns that several metrics of the same rows share are decoded once."""

    def __init__(self) -> None:
        self._rows: dict[bytes, _Rows] = {}

    def decode(self, data: bytes) -> Points:
        """Return the points of a block; its columns may be shared with other results, so do not change them.

        Raises `ValueError` for an encoding version that is not supported.
        """
        version, size = _HEADER.unpack_from(data)
        if version != _VERSION:
            raise ValueError(f"metric_blocks: encoding {version} is unknown, update this process")
        begin = _HEADER.size + size
        encoded = data[_HEADER.size : begin]
        if (rows := self._rows.get(encoded)) is None:
            rows = self._rows[encoded] = _integer_columns(_decompress(encoded))
        return Points(*rows, array("d", _decompress(data[begin:])))


def _integer_columns(numbers: bytearray) -> _Rows:
    size = len(numbers) // _INTEGERS
    parts = (numbers[column * size : (column + 1) * size] for column in range(_INTEGERS))
    seqs, steps, times, epochs = (array("q", part) for part in parts)
    return seqs, steps, times, epochs


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
    """The zstd compressor and decompressor of one thread; they must not be shared between threads."""

    def __init__(self) -> None:
        self.compress = zstandard.ZstdCompressor(level=1).compress
        self.decompress = zstandard.ZstdDecompressor().decompress


_coders: Final = _Coders()


def _compress(numbers: bytes) -> bytes:
    """Compress 8-byte numbers (little endian), transposed: byte 0 of all numbers, then byte 1 of all ..."""
    return _coders.compress(b"".join(numbers[place::_NUMBER_BYTES] for place in range(_NUMBER_BYTES)))


def _decompress(data: bytes) -> bytearray:
    by_place = _coders.decompress(data)
    count = len(by_place) // _NUMBER_BYTES
    numbers = bytearray(len(by_place))
    for place in range(_NUMBER_BYTES):
        numbers[place::_NUMBER_BYTES] = by_place[place * count : (place + 1) * count]
    return numbers
