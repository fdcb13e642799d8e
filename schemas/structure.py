"""Counts what encoded values hold, before any of it is built."""

from __future__ import annotations

import re
from typing import Final

from trainwire.schemas.limits import MAX_BODY_BYTES

_FIXED_BYTES: Final = {
    **dict.fromkeys([0xC0, 0xC1, 0xC2, 0xC3], 1),
    0xCA: 5,
    0xCB: 9,
    0xCC: 2,
    0xCD: 3,
    0xCE: 5,
    0xCF: 9,
    0xD0: 2,
    0xD1: 3,
    0xD2: 5,
    0xD3: 9,
    0xD4: 3,
    0xD5: 4,
    0xD6: 6,
    0xD7: 10,
    0xD8: 18,
}
"""msgpack's first byte -> bytes of the whole element."""
_LENGTH_BYTES: Final = {
    0xC4: (1, 0),
    0xC5: (2, 0),
    0xC6: (4, 0),
    0xC7: (1, 1),
    0xC8: (2, 1),
    0xC9: (4, 1),
    0xD9: (1, 0),
    0xDA: (2, 0),
    0xDB: (4, 0),
}
"""msgpack's first byte -> bytes of the length that follows, and bytes besides (an extension's type)."""
_CONTAINERS: Final = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
"""msgpack's first byte -> bytes of the length that follows, and elements for each (a map has keys and values)."""

_JSON_TOKENS: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{,]|[^"\[{,]++', re.DOTALL)
_JSON_OPENERS: Final = frozenset(b"[{,")


def msgpack_length(raw: bytes | memoryview) -> int:
    """Return how many items the array, or pairs the map, that `raw` begins with has; 0 where it is neither."""
    first = raw[0] if len(raw) else 0
    if 0x80 <= first <= 0x9F:
        return first & 0x0F
    width, _ = _CONTAINERS.get(first, (0, 0))
    return int.from_bytes(raw[1 : 1 + width], "big")


def msgpack_elements(raw: bytes | memoryview, most: int) -> int:
    """Return how many elements, keys included, the value holds; stops as soon as there are more than `most`.

    A truncated value ends the count: the decoder refuses it.
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
            width, besides = _LENGTH_BYTES[first]
            position += 1 + width + besides + int.from_bytes(raw[position + 1 : position + 1 + width], "big")
        else:
            width, each = _CONTAINERS[first]
            left += each * int.from_bytes(raw[position + 1 : position + 1 + width], "big")
            position += 1 + width
            if left > MAX_BODY_BYTES:  # announced, and never there
                return most + 1
    return count


def json_elements(raw: bytes, most: int) -> int:
    """Return about how many elements a JSON text holds; stops as soon as there are more than `most`.

    A comma or a bracket stands for each element. Those inside of texts are left out where they make a difference.
    """
    if (upper := raw.count(b",") + raw.count(b"[") + raw.count(b"{")) <= most:
        return upper
    count = 0
    for seen, token in enumerate(_JSON_TOKENS.finditer(raw)):
        count += raw[token.start()] in _JSON_OPENERS
        if count > most or seen > 8 * most:  # texts that no comma parts are no JSON
            return most + 1
    return count
