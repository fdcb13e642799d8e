"""Decodes and validates the bodies of stream entries, after a check of their sizes (docs/wire-format.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
import zstandard

from trainwire.schemas.decode_errors import DECODE_ERRORS
from trainwire.schemas.keys import Kind
from trainwire.schemas.non_finite import with_floats
from trainwire.schemas.wire.entries import Envelope
from trainwire.schemas.wire.limits import (
    MAX_ALERTS,
    MAX_BODY_BYTES,
    MAX_FREE_BYTES,
    MAX_FREE_ELEMENTS,
    MAX_ITEMS,
    MAX_RESULTS,
    MAX_VALUES,
    UNCOUNTED_BYTES,
)
from trainwire.schemas.wire.messages import BODY_TYPES, FREE_MAPS, Body
from trainwire.schemas.wire.structure import json_elements, msgpack_elements, msgpack_length
from trainwire.schemas.wire.validation import InvalidMessage, check_amount, check_body

_LEAST_VALUE_BYTES: Final = 3
"""Smallest size of a metric value in msgpack: a name of one character, and a small number."""
_JSON_ELEMENTS_A_VALUE: Final = 4
"""Elements that `json_elements` may count per metric value.

A point with one value has five commas and brackets; each further value adds one.
"""
_LISTS: Final = ("lines", "ts", "levels")
_NUMBER_MAPS: Final = ("metrics", "final_metrics", "best_metrics", "produced", "dropped")

_strict_decoders: Final[dict[Kind, Callable[[bytes], Body]]] = {
    kind: msgspec.msgpack.Decoder(body_type).decode for kind, body_type in BODY_TYPES.items()
}

_undecoded: Final[dict[Kind, type[msgspec.Struct]]] = {
    kind: msgspec.defstruct(
        f"Undecoded{body_type.__name__}",
        [(field.name, msgspec.Raw, msgspec.Raw()) for field in msgspec.structs.fields(body_type)],
    )
    for kind, body_type in BODY_TYPES.items()
}
_split_msgpack: Final = {kind: msgspec.msgpack.Decoder(split).decode for kind, split in _undecoded.items()}
_split_json: Final = {kind: msgspec.json.Decoder(split).decode for kind, split in _undecoded.items()}
_field_decoders: Final[dict[Kind, dict[str, Callable[[msgspec.Raw], Any]]]] = {
    kind: {field.name: msgspec.msgpack.Decoder(field.type).decode for field in msgspec.structs.fields(body_type)}
    for kind, body_type in BODY_TYPES.items()
}
_required: Final[dict[Kind, list[str]]] = {
    kind: [field.name for field in msgspec.structs.fields(body_type) if field.required]
    for kind, body_type in BODY_TYPES.items()
}


class _UndecodedPoint(msgspec.Struct):
    values: msgspec.Raw = msgspec.Raw()


_split_points: Final = msgspec.msgpack.Decoder(list[_UndecodedPoint]).decode


def decode_body(kind: Kind, envelope: Envelope) -> Body:
    """Decode and validate the body; raise `InvalidMessage` with a reason such as `undecodable` or `too-large`."""
    return decode_plain(kind, envelope.encoding, plain_body(envelope))


def decode_plain(kind: Kind, encoding: str, raw: bytes) -> Body:
    """Decode and validate an uncompressed body; raise `InvalidMessage` as `decode_body` does."""
    is_json = encoding.startswith("json")
    try:
        if is_json:
            return body_from_object(kind, _known_json(kind, raw))
        body = _strict_decoders[kind](raw) if len(raw) <= UNCOUNTED_BYTES else _counted(kind, raw)
    except msgspec.ValidationError as exc:
        raise InvalidMessage("wrong-fields", f"{kind} body: {exc}") from exc
    except DECODE_ERRORS as exc:
        raise InvalidMessage("undecodable", f"body is not {'JSON' if is_json else 'msgpack'}: {exc}") from exc
    check_body(body, len(raw))
    return body


def body_from_object(kind: Kind, value: object) -> Body:
    """Build and validate a body from decoded JSON, where NaN and infinities are names.

    Raises `InvalidMessage` if it is not valid.
    """
    try:
        body = msgspec.convert(with_floats(value), BODY_TYPES[kind])
    except (msgspec.ValidationError, OverflowError) as exc:
        raise InvalidMessage("wrong-fields", f"{kind} body: {exc}") from exc
    check_body(body)
    return body


def plain_body(envelope: Envelope) -> bytes:
    """Return the body, decompressed if necessary.

    Raises `InvalidMessage` if it exceeds MAX_BODY_BYTES, cannot be decompressed, or has an unknown encoding.
    """
    match envelope.encoding:
        case "msgpack" | "json":
            check_amount("body", len(envelope.body), MAX_BODY_BYTES, "bytes")
            return envelope.body
        case "msgpack+zstd" | "json+zstd":
            return _decompress(envelope.body)
        case unknown:
            raise InvalidMessage("unknown-encoding", f"encoding {unknown!r} is not msgpack or json, or +zstd")


def read_zstd(body: bytes, most_bytes: int) -> bytes:
    """Decompress `body`, at most `most_bytes` + 1 bytes of it, so that the caller can detect a larger one.

    The window is limited to MAX_BODY_BYTES. Raises `ZstdError` for damaged data or a larger window.
    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_BODY_BYTES)
    return decompressor.stream_reader(body).read(most_bytes + 1)


def _decompress(body: bytes) -> bytes:
    try:
        plain = read_zstd(body, MAX_BODY_BYTES)
    except zstandard.ZstdError as exc:
        raise InvalidMessage("undecodable", f"body is not zstd: {exc}") from exc
    if len(plain) > MAX_BODY_BYTES:
        raise InvalidMessage(
            "too-large", f"body: more than the {MAX_BODY_BYTES:,} bytes that are allowed, when decompressed"
        )
    return plain


def _counted(kind: Kind, raw: bytes) -> Body:
    """Decode a large msgpack body field by field, and check the limits of each field before decoding it.

    If a field is repeated, only its last occurrence is decoded.
    """
    fields = _present_fields(_split_msgpack[kind](raw))
    for name in _required[kind]:
        if name not in fields:
            raise InvalidMessage("wrong-fields", f"{kind} body: Object missing required field `{name}`")
    decoders = _field_decoders[kind]
    built: dict[str, Any] = {}
    for name, value in fields.items():
        _check_msgpack(name, memoryview(value))
        try:
            built[name] = decoders[name](value)
        except msgspec.ValidationError as exc:
            raise InvalidMessage("wrong-fields", f"{kind} body: {name}: {exc}") from exc
    return BODY_TYPES[kind](**built)


def _check_msgpack(name: str, value: memoryview) -> None:
    if name in _LISTS or name in _NUMBER_MAPS:
        most = MAX_RESULTS if name in _NUMBER_MAPS else MAX_ITEMS
        check_amount(name, msgpack_length(value), most)
    elif name == "alerts":
        check_amount(name, msgpack_length(value), MAX_ALERTS)
    elif name in FREE_MAPS:
        check_amount(name, len(value), MAX_FREE_BYTES, "bytes")
        _check_elements(name, msgpack_elements(value, MAX_FREE_ELEMENTS), MAX_FREE_ELEMENTS)
    elif name == "points":
        check_amount(name, msgpack_length(value), MAX_ITEMS)
        if len(value) <= _LEAST_VALUE_BYTES * MAX_VALUES:
            return
        values = [memoryview(point.values) for point in _split_points(value)]
        check_amount("values of all points", sum(map(msgpack_length, values)), MAX_VALUES)
        # Other fields of a point, for instance a repeated `values`, are decoded as well.
        rest_bytes = len(value) - sum(map(len, values))
        check_amount("points without their values", rest_bytes, MAX_BODY_BYTES // 4, "bytes")


def _known_json(kind: Kind, raw: bytes) -> dict[str, Any]:
    """Check the limits of the known fields of a JSON body, then decode them; unknown fields are ignored."""
    fields = {name: bytes(value) for name, value in _present_fields(_split_json[kind](raw)).items()}
    for name, value in fields.items():
        if name in FREE_MAPS:
            check_amount(name, len(value), MAX_FREE_BYTES, "bytes")
        if len(value) > UNCOUNTED_BYTES:
            most = MAX_FREE_ELEMENTS if name in FREE_MAPS else MAX_ITEMS
            most = most if name not in _NUMBER_MAPS else MAX_RESULTS
            most = most if name != "points" else _JSON_ELEMENTS_A_VALUE * MAX_VALUES
            _check_elements(name, json_elements(value, most), most)
    return {name: msgspec.json.decode(value) for name, value in fields.items()}


def _present_fields(undecoded: msgspec.Struct) -> dict[str, msgspec.Raw]:
    """Return the fields that are present in a partly decoded body, by name, as encoded bytes."""
    fields = msgspec.structs.asdict(undecoded)
    return {name: value for name, value in fields.items() if memoryview(value).nbytes}


def _check_elements(name: str, count: int, most: int) -> None:
    if count > most:
        raise InvalidMessage("too-large", f"{name}: more than the {most:,} elements that are allowed")
