"""The binary format in which the gateway sends a job's metrics: blocks of rows in packed columns (docs/client.md).

A response is a sequence of frames. A frame is a length of four bytes (big-endian), and a block as msgpack,
compressed with zstd. The last block has no rows; a response that ends without it is incomplete. All numbers in
blocks are big-endian, as Postgres sends them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec
import zstandard

from trainwire.schemas.decode_errors import DECODE_ERRORS

MEDIA_TYPE: Final = "application/vnd.trainwire.metrics"
LENGTH_BYTES: Final = 4
INTEGERS: Final = {"seq": 8, "attempt": 4, "rank": 4, "epoch": 8, "step": 8, "time": 8}
"""Integer column -> size of a value in bytes; `time` is in microseconds since 2000 UTC."""
EPOCH_US: Final = 946_684_800 * 10**6
"""The start of the year 2000, in microseconds since 1970."""


class Packed(msgspec.Struct, frozen=True, array_like=True):
    """The values of one column in binary form.

    `seqs` has the `seq` of the rows that have a value; None means that all rows of the block have one.
    """

    values: bytes
    seqs: bytes | None = None


class MetricBlock(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of training_metrics in the order of `seq`.

    Values of `columns` are integers (see INTEGERS), and values of `metrics` are doubles.
    """

    rows: int
    columns: dict[str, Packed] = {}
    metrics: dict[str, Packed] = {}


_SPACE: Final = " \t\r\n"
_CHARACTERS: Final = re.compile(r"\\[\\, \t\r\n]|.", re.DOTALL)
_BETWEEN_COMMAS: Final = re.compile(r"(?:\\[\\, \t\r\n]|[^,])+")
_TO_ESCAPE: Final = re.compile(r"[\\,]|^[ \t\r\n]|[ \t\r\n]\Z")

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(MetricBlock).decode


class WrongBlock(ValueError):  # noqa: N818 - named after its message
    """The bytes of a frame cannot be decoded as a `MetricBlock`."""


def joined_names(names: Iterable[str]) -> str:
    r"""Join names with commas for a query parameter.

    A comma or backslash within a name, and white space at its ends, gets a backslash before it: `a, b` becomes
    `a\, b`.
    """
    return ",".join(_TO_ESCAPE.sub(r"\\\g<0>", name) for name in names)


def split_names(given: Iterable[str]) -> list[str]:
    """Split values that `joined_names` made, or that people have typed; return the distinct names in order.

    White space around a name without a backslash before it is removed, and blank names are left out.
    """
    names = [_unescaped(part) for text in given for part in _BETWEEN_COMMAS.findall(text)]
    return list(dict.fromkeys(name for name in names if name))


def _unescaped(text: str) -> str:
    characters = _CHARACTERS.findall(text)
    for end in (-1, 0):
        while characters and characters[end] in _SPACE:
            del characters[end]
    return "".join(character[-1] for character in characters)


def encode_frame(block: MetricBlock) -> bytes:
    """Return the block as a frame: its length in four bytes, and the compressed block."""
    body = zstandard.compress(_encode(block), 1)
    return len(body).to_bytes(LENGTH_BYTES) + body


def decode_frame(body: bytes) -> MetricBlock:
    """Decode the block of a frame; `body` is the frame without its length.

    Raises `WrongBlock` if it cannot be decompressed or decoded.
    """
    try:
        return _decode(zstandard.decompress(body))
    except (zstandard.ZstdError, *DECODE_ERRORS) as exc:
        raise WrongBlock(f"a block of metrics cannot be read: {exc}") from exc
