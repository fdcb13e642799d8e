"""Appends values to a message that has not been sent yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import msgspec
import zstandard
from msgspec.structs import replace

from trainwire.ingest.sending.buffer import MAX_ITEMS, merge_header
from trainwire.schemas.wire.entries import Entry
from trainwire.schemas.wire.messages import Body, Logs, Metrics

GROWN_BYTES: Final = 16 * 1024
"""Size of a body from which it takes no more values. Each addition writes the whole message to the spool again."""

BodyT = TypeVar("BodyT", Logs, Metrics)

_decode_logs: Final = msgspec.msgpack.Decoder(Logs).decode
_decode_metrics: Final = msgspec.msgpack.Decoder(Metrics).decode


def grown(entry: Entry, addition: Body) -> Body | None:
    """Return the body of an encoded message with `addition` appended; None if they do not belong together.

    Lines of stdout and stderr, and other kinds than lines and points, are not joined, so that the numbers of
    messages keep their order.
    """
    match addition:
        case Logs():
            before = _decoded(entry, _decode_logs)
            return None if before is None else _grown_logs(before, addition)
        case Metrics():
            points = _decoded(entry, _decode_metrics)
            return None if points is None else _grown_metrics(points, addition)
    return None


def _decoded(entry: Entry, decode: Callable[[bytes], BodyT]) -> BodyT | None:
    body, encoding = entry["body"], entry["enc"]
    assert isinstance(body, bytes)  # noqa: S101 - as `encode_entry` makes it
    if len(body) > GROWN_BYTES:
        return None
    plain = zstandard.decompress(body) if encoding == "msgpack+zstd" else body
    return decode(plain) if len(plain) <= GROWN_BYTES else None


def _grown_logs(before: Logs, addition: Logs) -> Logs | None:
    lines = before.lines + addition.lines
    if before.log_type != addition.log_type or before.rank != addition.rank or len(lines) > MAX_ITEMS:
        return None
    levels = None
    if before.levels or addition.levels:
        levels = [level for body in (before, addition) for level in body.levels or [None] * len(body.lines)]
    return replace(before, lines=lines, ts=before.ts + addition.ts, levels=levels)


def _grown_metrics(before: Metrics, addition: Metrics) -> Metrics | None:
    # Points and progress only: a header describes the attempt, and is rare.
    header = replace(addition, points=[], progress=None, started_at=before.started_at)
    nothing = Metrics(rank=before.rank, started_at=before.started_at, resume_step=addition.resume_step)
    points = before.points + addition.points
    if header != nothing or len(points) > MAX_ITEMS:
        return None
    joined = replace(before, points=points)
    merge_header(joined, addition)
    return joined
