"""The binary form of a job's metrics: blocks of rows in packed columns (docs/client.md).

A stream is a sequence of frames, each four bytes of length (big-endian) and a block as msgpack, compressed with
zstd. A block without rows is the last one: a stream that ends before it is incomplete. All numbers are big-endian,
as Postgres sends them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec
import zstandard

MEDIA_TYPE: Final = "application/vnd.trainwire.metrics"
LENGTH_BYTES: Final = 4
INTEGERS: Final = {"seq": 8, "attempt": 4, "rank": 4, "epoch": 8, "step": 8, "time": 8}
"""The columns that all rows may have, and the bytes of a value; `time` is in microseconds since 2000 UTC."""
EPOCH_US: Final = 946_684_800 * 10**6
"""The beginning of the year 2000 in microseconds since 1970."""


class Packed(msgspec.Struct, frozen=True, array_like=True):
    """The values of a column, and the `seq` of the rows that have one; None: all rows of the block."""

    values: bytes
    seqs: bytes | None = None


class MetricBlock(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of training_metrics in the order of `seq`; values of metrics are doubles."""

    rows: int
    columns: dict[str, Packed] = {}
    metrics: dict[str, Packed] = {}


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(MetricBlock).decode


class WrongBlock(ValueError):  # noqa: N818 - named after its message
    """A frame is not a block of this version."""


def joined_names(names: Iterable[str]) -> str:
    r"""Return names as the value of a query parameter: separated by commas, and a comma in a name is `\,`."""
    return ",".join(name.replace(",", "\\,") for name in names)


def split_names(given: Iterable[str]) -> list[str]:
    """Return the distinct names of the values of such a parameter, without surrounding white space."""
    names = [name.replace("\\,", ",").strip() for text in given for name in re.split(r"(?<!\\),", text)]
    return list(dict.fromkeys(name for name in names if name))


def encode_frame(block: MetricBlock) -> bytes:
    """Return a block as a frame with its length."""
    body = zstandard.compress(_encode(block), 1)
    return len(body).to_bytes(LENGTH_BYTES) + body


def decode_frame(body: bytes) -> MetricBlock:
    """Decode a frame without its length; raise `WrongBlock` if it is not valid."""
    try:
        return _decode(zstandard.decompress(body))
    except (zstandard.ZstdError, msgspec.DecodeError) as exc:
        raise WrongBlock(f"a block of metrics cannot be read: {exc}") from exc
