"""Counts the elements of encoded msgpack and JSON values without decoding them."""

from __future__ import annotations

import re
from typing import Final

from trainwire.schemas.wire.limits import MAX_BODY_BYTES

_FIXED_BYTES: Final = {
    **dict.fromkeys(range(0xC0, 0xC4), 1),  # nil, unused, false, true
    **dict(zip(range(0xCA, 0xD4), (5, 9, 2, 3, 5, 9, 2, 3, 5, 9), strict=True)),  # floats and integers
    **dict(zip(range(0xD4, 0xD9), (3, 4, 6, 10, 18), strict=True)),  # extensions of fixed size
}
"""First byte of a msgpack element -> size of the whole element in bytes."""
_LENGTH_BYTES: Final = {
    **{0xC4 + size: (1 << size, 0) for size in range(3)},  # binary data
    **{0xC7 + size: (1 << size, 1) for size in range(3)},  # extensions
    **{0xD9 + size: (1 << size, 0) for size in range(3)},  # strings
}
"""First byte of a msgpack element -> size of the length field that follows, and number of further header bytes.

Only extensions have a further byte: their type.
"""
_CONTAINERS: Final = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
"""First byte of a msgpack container -> size of the length field that follows, and elements per item.

An array has one element per item, a map two: key and value.
"""

_JSON_TOKENS: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{,]|[^"\[{,]++', re.DOTALL)
_JSON_OPENERS: Final = frozenset(b"[{,")


def msgpack_length(raw: bytes | memoryview) -> int:
    """Return the number of items of an encoded array, or of pairs of an encoded map; 0 for any other value."""
    first = raw[0] if len(raw) else 0
    if 0x80 <= first <= 0x9F:
        return first & 0x0F
    width, _ = _CONTAINERS.get(first, (0, 0))
    return int.from_bytes(raw[1 : 1 + width], "big")


def msgpack_elements(raw: bytes | memoryview, most: int) -> int:
    """Return the number of elements in an encoded value, including keys; stop counting above `most`.

    The count of a truncated value may be too low. This does no harm, because the decoder rejects the value.
    """
    position, count, left = 0, 0, 1
    end = len(raw)
    while left and position < end and count <= most:
        first = raw[position]
        count += 1
        left -= 1
        if first <= 0x7F or first >= 0xE0:
            position += 1
        elif first <= 0x8F:
            left += 2 * (first & 0x0F)
            position += 1
        elif first <= 0x9F:
            left += first & 0x0F
            position += 1
        elif first <= 0xBF:
            position += 1 + (first & 0x1F)
        elif first in _FIXED_BYTES:
            position += _FIXED_BYTES[first]
        elif first in _LENGTH_BYTES:
            width, extra = _LENGTH_BYTES[first]
            position += 1 + width + extra + int.from_bytes(raw[position + 1 : position + 1 + width], "big")
        else:
            width, each = _CONTAINERS[first]
            left += each * int.from_bytes(raw[position + 1 : position + 1 + width], "big")
            position += 1 + width
            if left > MAX_BODY_BYTES:  # more elements are announced than bytes can follow
                return most + 1
    return count


def json_elements(raw: bytes, most: int) -> int:
    """Return the approximate number of elements in a JSON text; stop counting above `most`.

    Counts commas and opening brackets. Those inside strings are excluded only if the count would otherwise exceed
    `most`.
    """
    if (upper := raw.count(b",") + raw.count(b"[") + raw.count(b"{")) <= most:
        return upper
    count = 0
    for seen, token in enumerate(_JSON_TOKENS.finditer(raw)):
        count += raw[token.start()] in _JSON_OPENERS
        if count > most or seen > 8 * most:  # strings without commas between them: not JSON
            return most + 1
    return count
