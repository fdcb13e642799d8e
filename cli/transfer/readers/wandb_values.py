"""Decodes names and JSON values in W&B records (`wandb/proto/wandb_internal.proto`)."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from trainwire.ingest.hooks.protobuf import fields
from trainwire.schemas.decode_errors import DECODE_ERRORS
from trainwire.schemas.non_finite import BEYOND_FLOAT, is_beyond_float

Named = tuple[tuple[str, ...], bytes]
"""The names of a nested value, outermost first, and its JSON text."""
UNREADABLE: Final = "unreadable value"
_KINDS: Final[dict[type, str]] = {str: "text", list: "list", type(None): "empty value"}
_MAX_DEPTH: Final = 40
_MAX_INTEGER_DIGITS: Final = 18
json_number = msgspec.json.Decoder(float).decode
"""Decode the JSON text of a number; raise one of `DECODE_ERRORS` if it is none, or is beyond the range of a float.

It takes a quarter of the time of `float`, which also accepts `1_000`.
"""


@dataclass(slots=True)
class Row:
    """The values of one step in a W&B history: its numbers, and the types of all other values."""

    numbers: dict[str, float]
    others: list[str]


def text_of(data: bytes) -> str:
    """Decode UTF-8; invalid bytes are replaced."""
    return data.decode("utf-8", "replace")


def item_of(data: bytes) -> Named:
    """Decode the names and the JSON text of an item in a history, config, summary or statistics record."""
    names: list[str] = []
    key, value = "", b"null"
    for number, found in fields(data):
        if number == 1:
            key = text_of(found)
        elif number == 2:
            names.append(text_of(found))
        elif number == 16 or (number in _TYPED and value == b"null"):
            value = found if number == 16 else _TYPED[number](found)
    return tuple(names) or (key,), value


_TYPED: Final[dict[int, Any]] = {
    4: lambda value: b"true" if value else b"false",
    5: lambda value: str((value >> 1) ^ -(value & 1)).encode(),
    6: lambda value: repr(struct.unpack("<d", value)[0]).encode(),
    7: lambda value: json.dumps(text_of(value)).encode(),
    8: lambda value: value,
}
"""Field number -> conversion to JSON, for the typed values of newer W&B versions.

The JSON text in field 16 takes precedence.
"""


def row_of(items: Iterable[Named]) -> Row:
    """Return the values in `items` as a `Row`; names of nested values are joined with dots, as in W&B."""
    row = Row({}, [])
    nested = []
    for names, raw in items:
        if len(names) == 1:
            _add(row, names[0], raw)
        else:
            nested.append((names, raw))
    if nested:
        _add_nested(row, nested)
    return row


def _add_nested(row: Row, nested: list[Named]) -> None:
    """Add nested values to `row`; a map with the key `_type`, such as an image, is counted as one other value."""
    media = {names[:-1]: raw for names, raw in nested if names[-1] == "_type"}
    for names, raw in nested:
        if not any(names[:size] in media for size in range(1, len(names))):
            _add(row, ".".join(names), raw)
    row.others.extend(str(json_value(raw))[:100] for raw in media.values())


def _add(row: Row, name: str, raw: bytes) -> None:
    try:
        row.numbers[name] = json_number(raw)
    except DECODE_ERRORS:
        _add_other(row, name, raw)


def _add_other(row: Row, name: str, raw: bytes) -> None:
    try:
        found = list(_numbers(name, json.loads(raw, parse_int=_Digits, parse_float=_Digits)))
    except (ValueError, RecursionError, OverflowError):
        row.others.append(UNREADABLE)
        return
    for each, number in found:
        if isinstance(number, float):
            row.numbers[each] = number
        else:
            row.others.append(number)


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float | str]]:
    """Yield (name, number) for each number in a JSON value, and (name, type) for each other value in it."""
    if isinstance(value, dict):
        if "_type" in value:
            yield name, str(value["_type"])[:100]
            return
        for key, inner in value.items():
            yield from _numbers(f"{name}.{key}".encode("utf-8", "replace").decode(), inner)
    elif isinstance(value, _Digits):
        yield name, BEYOND_FLOAT if is_beyond_float(float(value), value) else float(value)
    elif isinstance(value, int | float) or value in ("NaN", "Infinity", "-Infinity"):
        yield name, float(value)
    else:
        yield name, _KINDS.get(type(value), UNREADABLE)


class _Digits(str):
    """The digits of a number in JSON."""

    __slots__ = ()


def json_value(raw: bytes) -> Any:
    """Decode the JSON text of a parameter; return the text itself if it is invalid or nested too deeply."""
    text = text_of(raw)
    try:
        value = json.loads(text, parse_int=_integer, parse_float=_float)
        if _depth(value) > _MAX_DEPTH:
            return text
        # An escaped half of a surrogate pair cannot be stored.
        dumped = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
        return json.loads(dumped, parse_int=_integer)
    except (ValueError, RecursionError):
        return text


def _integer(digits: str) -> int | float | str:
    return int(digits) if len(digits) <= _MAX_INTEGER_DIGITS else _float(digits)


def _float(digits: str) -> float | str:
    """Return the number, or its text if it is beyond the range of a float."""
    number = float(digits)
    return digits if math.isinf(number) else number


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)
