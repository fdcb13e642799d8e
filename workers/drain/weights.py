"""How much memory a decoded entry takes, by which a drain bounds its batch."""

from __future__ import annotations

from sys import getsizeof
from typing import Final

import msgspec

from trainwire.schemas.messages import FREE_MAPS, Logs, Message, Metrics
from trainwire.schemas.validation import free_elements
from trainwire.workers.drain.decoding import Lost, Rejected

_ROW_BYTES: Final = 100
_POINT_BYTES: Final = 250
_VALUE_BYTES: Final = 60
_LONG_CHARS: Final = 500
_ELEMENT_BYTES: Final = 80


def weight_of(content: Message | Lost | Rejected, plain_bytes: int) -> int:
    """Return about how many bytes a message takes until its commit, and no less than its decoding took.

    `plain_bytes` is the size of its body after decompression, which is all that a rejected one has.
    """
    match content:
        case Rejected(raw=raw):
            held = raw.held_bytes
        case Lost():
            held = 0
        case message:
            held = _message_bytes(message, plain_bytes)
    return _ROW_BYTES + max(held, plain_bytes)


def _message_bytes(message: Message, plain_bytes: int) -> int:
    match message.body:
        case Logs(lines=lines) as body:
            chars = sum(map(len, lines))
            if chars > _LONG_CHARS * len(lines):
                # As Python has them: one character beyond Unicode's first plane makes each of them four bytes.
                chars = sum(map(getsizeof, lines))
            return chars + (160 if body.levels else 100) * len(lines)
        case Metrics() as body:
            values = sum(len(point.values) for point in body.points)
            points = _POINT_BYTES * len(body.points) + _VALUE_BYTES * values
            # Names and paths take no more than they did in the body.
            return points + plain_bytes + sum(_free_bytes(getattr(body, name)) for name in FREE_MAPS)
        case body:
            return sum(map(_field_bytes, msgspec.structs.astuple(body)))


def _free_bytes(value: object) -> int:
    return _ELEMENT_BYTES * free_elements(value) + _text_bytes(value) if value else 0


def _text_bytes(value: object) -> int:
    if isinstance(value, dict):
        return sum(map(_text_bytes, value)) + sum(map(_text_bytes, value.values()))
    if isinstance(value, list):
        return sum(map(_text_bytes, value))
    return getsizeof(value) if isinstance(value, (str, bytes)) else 0


def _field_bytes(value: object) -> int:
    if isinstance(value, dict):
        return _VALUE_BYTES * len(value) + sum(map(getsizeof, value))
    return getsizeof(value) if isinstance(value, str) else 0
