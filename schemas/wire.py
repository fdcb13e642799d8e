"""How a message travels: a stream entry of flat fields and one encoded body (docs/wire-format.md)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypeAlias

import msgspec
import zstandard

from trainwire.schemas.keys import Kind
from trainwire.schemas.limits import (
    MAX_BODY_BYTES,
    MAX_FREE_BYTES,
    MAX_FREE_ELEMENTS,
    MAX_ITEMS,
    MAX_RESULTS,
    MAX_VALUES,
    UNCOUNTED_BYTES,
)
from trainwire.schemas.messages import BODY_TYPES, FREE_MAPS, Body, Message
from trainwire.schemas.non_finite import with_floats
from trainwire.schemas.structure import json_elements, msgpack_elements, msgpack_length
from trainwire.schemas.validation import MAX_ATTEMPT, MAX_ID, InvalidMessage, check_body

WIRE_VERSION: Final = 1
MAX_SOURCE_CHARS: Final = 200
COMPRESS_OVER_BYTES: Final = 2048

LOST: Final = "lost"
"""The encoding of an entry that states which numbers will never be sent; its body is a `Loss`."""
MAX_LOST: Final = 10**9
"""Most numbers that one entry may declare lost."""
MAX_LOSS_BYTES: Final = 1024
_LOST_ONE: Final = b"damaged in the spool of its trainer"
"""The body that trainers sent in the place of each damaged message before they declared ranges."""

Encoding = Literal["msgpack", "json", "msgpack+zstd", "json+zstd"]


class Envelope(msgspec.Struct, frozen=True):
    """The flat fields of an entry, checked, with the body still encoded."""

    job_id: int
    attempt: int
    source: str
    seq: int
    encoding: str
    body: bytes


class Loss(msgspec.Struct, omit_defaults=True, kw_only=True, frozen=True):
    """States that the numbers from the entry's `seq` to `last` will never be sent.

    `reason` is a short word to count by. `started_at`, as in messages, is when the source began.
    """

    last: int
    reason: str
    started_at: int | None = None


Entry: TypeAlias = dict[str, str | int | bytes]

_encode_msgpack = msgspec.msgpack.Encoder().encode
_decode_loss = msgspec.msgpack.Decoder(Loss).decode
_decode_json_loss = msgspec.json.Decoder(Loss).decode
_is_reason = re.compile(r"[a-z-]{1,40}").fullmatch
_strict_decoders: Final[dict[Kind, Callable[[bytes], Body]]] = {
    kind: msgspec.msgpack.Decoder(body_type).decode for kind, body_type in BODY_TYPES.items()
}


def encode_entry(message: Message) -> Entry:
    """Return the fields of one XADD for `message`: msgpack, compressed where the body is worth it.

    Raises `InvalidMessage` where a text or a number has no msgpack form (a lone surrogate, 2**64), and where the
    body is larger than workers take it.
    """
    try:
        body = _encode_msgpack(message.body)
    except (UnicodeEncodeError, OverflowError, TypeError) as exc:
        raise InvalidMessage("unencodable", f"{message.kind} of job {message.job_id}: {exc}") from exc
    _check_amount("body", "bytes", len(body), MAX_BODY_BYTES)
    encoding: Encoding = "msgpack"
    if len(body) > COMPRESS_OVER_BYTES:
        # A copy: trainers hold it until the ack, and what zstandard returns keeps room for the whole body.
        body, encoding = bytes(memoryview(zstandard.compress(body, 1))), "msgpack+zstd"
    return {
        "v": WIRE_VERSION,
        "job": message.job_id,
        "attempt": message.attempt,
        "source": message.source,
        "seq": message.seq,
        "enc": encoding,
        "body": body,
    }


def encode_loss(job_id: int, attempt: int, source: str, first: int, loss: Loss) -> Entry:
    """Return the fields of one XADD that declares the numbers `first` to `loss.last` lost."""
    return {
        "v": WIRE_VERSION,
        "job": job_id,
        "attempt": attempt,
        "source": source,
        "seq": first,
        "enc": LOST,
        "body": _encode_msgpack(loss),
    }


def decode_loss(envelope: Envelope) -> Loss:
    """Decode the body of an entry with the encoding `lost`; raise `InvalidMessage` where it breaks the rules."""
    if envelope.body == _LOST_ONE:
        return Loss(last=envelope.seq, reason="damaged")
    if len(envelope.body) > MAX_LOSS_BYTES:
        raise InvalidMessage("too-large", f"body of a loss: {len(envelope.body):,} bytes, over {MAX_LOSS_BYTES}")
    try:  # no msgpack map begins with a brace
        loss = (_decode_json_loss if envelope.body.startswith(b"{") else _decode_loss)(envelope.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidMessage("wrong-fields", f"body of a loss: {exc}") from exc
    if not 0 <= loss.last - envelope.seq < MAX_LOST or loss.last > MAX_ID:
        raise InvalidMessage(
            "out-of-range", f"numbers {envelope.seq} to {loss.last} are not 1 to {MAX_LOST:,} lost messages"
        )
    if not _is_reason(loss.reason):
        raise InvalidMessage("wrong-fields", f"reason {loss.reason[:40]!r} is not 1 to 40 letters a-z and hyphens")
    return loss


def open_envelope(fields: Mapping[bytes, bytes]) -> Envelope:
    """Check the flat fields of a raw entry and return them; the body is not looked at.

    Raises `InvalidMessage` that names the field, its value and what is allowed.
    """
    version = _whole_number(fields, b"v", 0, MAX_ID)
    if version != WIRE_VERSION:
        raise InvalidMessage("unknown-version", f"version {version} is unknown here: this side speaks 1")
    return Envelope(
        job_id=_whole_number(fields, b"job", 1, MAX_ID),
        attempt=_whole_number(fields, b"attempt", 0, MAX_ATTEMPT),
        source=_source(fields),
        seq=_whole_number(fields, b"seq", 1, MAX_ID),
        encoding=_field(fields, b"enc").decode("utf-8", "replace"),
        body=_field(fields, b"body"),
    )


def read_origin(fields: Mapping[bytes, bytes]) -> tuple[int, str] | None:
    """Return an entry's job and source as `open_envelope` reads them; None where one of them is not valid."""
    try:
        return _whole_number(fields, b"job", 1, MAX_ID), _source(fields)
    except InvalidMessage:
        return None


def decode_body(kind: Kind, envelope: Envelope) -> Body:
    """Decode the body strictly; raise `InvalidMessage`, with a reason such as `undecodable` or `too-large`."""
    return decode_plain(kind, envelope.encoding, plain_body(envelope))


def decode_plain(kind: Kind, encoding: str, raw: bytes) -> Body:
    """Decode a body that is not compressed (any more), as `decode_body` does."""
    is_json = encoding.startswith("json")
    try:
        if is_json:
            return body_from_object(kind, _known_json(kind, raw))
        body = _strict_decoders[kind](raw) if len(raw) <= UNCOUNTED_BYTES else _counted(kind, raw)
    except msgspec.ValidationError as exc:
        raise InvalidMessage("wrong-fields", f"{kind} body: {exc}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidMessage("undecodable", f"body is not {'JSON' if is_json else 'msgpack'}: {exc}") from exc
    check_body(body, len(raw))
    return body


def body_from_object(kind: Kind, value: object) -> Body:
    """Build a body from plain lists and dictionaries, with non-finite numbers spelled as in JSON."""
    try:
        body = msgspec.convert(with_floats(value), BODY_TYPES[kind])
    except (msgspec.ValidationError, OverflowError) as exc:
        raise InvalidMessage("wrong-fields", f"{kind} body: {exc}") from exc
    check_body(body)
    return body


def plain_body(envelope: Envelope) -> bytes:
    """Return the body's msgpack or JSON bytes, up to `MAX_BODY_BYTES` of them."""
    match envelope.encoding:
        case "msgpack" | "json":
            _check_amount("body", "bytes", len(envelope.body), MAX_BODY_BYTES)
            return envelope.body
        case "msgpack+zstd" | "json+zstd":
            return _decompress(envelope.body)
        case unknown:
            raise InvalidMessage("unknown-encoding", f"encoding {unknown!r} is not msgpack or json, or +zstd")


_LEAST_VALUE_BYTES: Final = 3
"""A name of one character and a small number, in msgpack."""
_JSON_ELEMENTS_A_VALUE: Final = 4
"""A point of one value has five commas and brackets, a further value has one."""
_LISTS: Final = ("lines", "ts", "levels")
_NUMBER_MAPS: Final = ("metrics", "final_metrics", "best_metrics", "produced", "dropped")

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


def _counted(kind: Kind, raw: bytes) -> Body:
    """Decode a large msgpack body field by field, each only once it is known to be within its limits.

    A field that comes twice is built once: the last counts.
    """
    fields = _said(_split_msgpack[kind](raw))
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
        _check_amount(name, "items", msgpack_length(value), most)
    elif name in FREE_MAPS:
        _check_amount(name, "bytes", len(value), MAX_FREE_BYTES)
        _check_elements(name, msgpack_elements(value, MAX_FREE_ELEMENTS), MAX_FREE_ELEMENTS)
    elif name == "points":
        _check_amount(name, "items", msgpack_length(value), MAX_ITEMS)
        if len(value) <= _LEAST_VALUE_BYTES * MAX_VALUES:
            return
        values = [memoryview(point.values) for point in _split_points(value)]
        _check_amount("values of all points", "items", sum(map(msgpack_length, values)), MAX_VALUES)
        # What a point has besides, for instance `values` a second time, is built as well.
        _check_amount(
            "points without their values", "bytes", len(value) - sum(map(len, values)), MAX_BODY_BYTES // 4
        )


def _known_json(kind: Kind, raw: bytes) -> dict[str, Any]:
    """Decode the fields that a body has, as far as they are there; nothing is built of any others."""
    fields = {name: bytes(value) for name, value in _said(_split_json[kind](raw)).items()}
    for name, value in fields.items():
        if name in FREE_MAPS:
            _check_amount(name, "bytes", len(value), MAX_FREE_BYTES)
        if len(value) > UNCOUNTED_BYTES:
            most = MAX_FREE_ELEMENTS if name in FREE_MAPS else MAX_ITEMS
            most = most if name not in _NUMBER_MAPS else MAX_RESULTS
            most = most if name != "points" else _JSON_ELEMENTS_A_VALUE * MAX_VALUES
            _check_elements(name, json_elements(value, most), most)
    return {name: msgspec.json.decode(value) for name, value in fields.items()}


def _said(undecoded: msgspec.Struct) -> dict[str, msgspec.Raw]:
    """Return the fields that are there."""
    fields = msgspec.structs.asdict(undecoded)
    return {name: value for name, value in fields.items() if memoryview(value).nbytes}


def _check_amount(what: str, unit: str, amount: int, most: int) -> None:
    if amount > most:
        raise InvalidMessage("too-large", f"{what}: {amount:,} {unit}, at most {most:,} are allowed")


def _check_elements(what: str, count: int, most: int) -> None:
    if count > most:
        raise InvalidMessage("too-large", f"{what}: more than the {most:,} elements that are allowed")


def _field(fields: Mapping[bytes, bytes], name: bytes) -> bytes:
    value = fields.get(name)
    if value is None:
        raise InvalidMessage("missing-field", f"entry has no field {name.decode()!r}")
    return value


def _whole_number(fields: Mapping[bytes, bytes], name: bytes, least: int, most: int) -> int:
    raw = _field(fields, name)
    if len(raw) > 20 or not raw.removeprefix(b"-").isdigit():
        raise InvalidMessage("wrong-fields", f"{name.decode()} {raw[:40]!r} is not a whole number")
    value = int(raw)
    if not least <= value <= most:
        raise InvalidMessage("out-of-range", f"{name.decode()} {value} is not in {least} to {most}")
    return value


def _source(fields: Mapping[bytes, bytes]) -> str:
    raw = _field(fields, b"source")
    try:
        source = raw.decode()
    except UnicodeDecodeError as exc:
        raise InvalidMessage("wrong-fields", f"source {raw[:40]!r} is not UTF-8") from exc
    if not 1 <= len(source) <= MAX_SOURCE_CHARS or "\x00" in source:
        raise InvalidMessage("wrong-fields", f"source must be 1 to {MAX_SOURCE_CHARS} characters without NUL")
    return source


def _decompress(body: bytes) -> bytes:
    try:
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_BODY_BYTES)
        plain = decompressor.stream_reader(body).read(MAX_BODY_BYTES + 1)
    except zstandard.ZstdError as exc:
        raise InvalidMessage("undecodable", f"body is not zstd: {exc}") from exc
    if len(plain) > MAX_BODY_BYTES:
        raise InvalidMessage(
            "too-large", f"body: more than the {MAX_BODY_BYTES:,} bytes that are allowed, when decompressed"
        )
    return plain
