"""The wire format: encoding and decoding of stream entries and their bodies (docs/wire-format.md)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, Literal, TypeAlias, get_args

import msgspec
import zstandard

from trainwire.schemas.keys import Kind
from trainwire.schemas.non_finite import with_floats
from trainwire.schemas.wire.limits import (
    MAX_ALERTS,
    MAX_BODY_BYTES,
    MAX_FREE_BYTES,
    MAX_FREE_ELEMENTS,
    MAX_ITEMS,
    MAX_RESULTS,
    MAX_SOURCE_CHARS,
    MAX_VALUES,
    UNCOUNTED_BYTES,
)
from trainwire.schemas.wire.messages import BODY_TYPES, FREE_MAPS, Body, Message
from trainwire.schemas.wire.structure import json_elements, msgpack_elements, msgpack_length
from trainwire.schemas.wire.validation import MAX_ATTEMPT, MAX_ID, InvalidMessage, check_amount, check_body

WIRE_VERSION: Final = 1
COMPRESS_OVER_BYTES: Final = 2048

INFERRED_END: Final = "~end-"
"""Text between the name of an ended source and a suffix, in the name of a source that sends an inferred
completion.

The completion is that of the ended source; see docs/decisions/0018.
"""
LOST: Final = "lost"
"""Encoding of an entry that declares message numbers lost; its body is a `Loss`."""
MAX_LOST: Final = 10**9
"""Largest number of messages that one entry may declare lost."""
MAX_LOSS_BYTES: Final = 1024
_LOST_ONE: Final = b"damaged in the spool of its trainer"
"""Body that older trainers send in place of each damaged message; newer trainers send a `Loss` for a range."""

Encoding = Literal["msgpack", "json", "msgpack+zstd", "json+zstd"]
_ENCODINGS: Final = {name.encode(): name for name in (*get_args(Encoding), LOST)}
_KNOWN_SOURCES: Final = 16_384
"""Number of sources whose validated fields are cached."""


class Envelope(msgspec.Struct, frozen=True):
    """The validated fields of an entry; the body is still encoded."""

    job_id: int
    attempt: int
    source: str
    seq: int
    encoding: str
    body: bytes


class Loss(msgspec.Struct, omit_defaults=True, kw_only=True, frozen=True):
    """Body of an entry that declares messages lost: its source will never send the entry's `seq` to `last`.

    `reason` is a slug by which losses are counted. `started_at` is the start time of the source, as in messages.
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
    """Return the XADD fields of a message; its body is msgpack, compressed if larger than COMPRESS_OVER_BYTES.

    Raises `InvalidMessage` if a value cannot be encoded (a lone surrogate, 2**64), or if the body exceeds
    MAX_BODY_BYTES.
    """
    try:
        body = _encode_msgpack(message.body)
    except (UnicodeEncodeError, OverflowError, TypeError) as exc:
        raise InvalidMessage("unencodable", f"{message.kind} of job {message.job_id}: {exc}") from exc
    check_amount("body", len(body), MAX_BODY_BYTES, "bytes")
    encoding: Encoding = "msgpack"
    if len(body) > COMPRESS_OVER_BYTES:
        # Copied: trainers keep it until the ack, and the buffer of zstandard has the size of the whole body.
        body, encoding = bytes(memoryview(zstandard.compress(body, 1))), "msgpack+zstd"
    return _entry(message.job_id, message.attempt, message.source, message.seq, encoding=encoding, body=body)


def encode_loss(job_id: int, attempt: int, source: str, first: int, loss: Loss) -> Entry:
    """Return the XADD fields of an entry that declares the message numbers `first` to `loss.last` lost."""
    return _entry(job_id, attempt, source, first, encoding=LOST, body=_encode_msgpack(loss))


def _entry(job_id: int, attempt: int, source: str, seq: int, *, encoding: str, body: bytes) -> Entry:
    return {
        "v": WIRE_VERSION,
        "job": job_id,
        "attempt": attempt,
        "source": source,
        "seq": seq,
        "enc": encoding,
        "body": body,
    }


def decode_loss(envelope: Envelope) -> Loss:
    """Decode the body of an entry with the encoding `lost`; raise `InvalidMessage` if it is not valid."""
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
    """Validate and return the fields of a raw entry, without decoding its body.

    Raises `InvalidMessage`, whose text names the field, its value and the allowed values.
    """
    get = fields.get
    job_id, attempt, source = _origin(get(b"v"), get(b"job"), get(b"attempt"), get(b"source"))
    seq = _whole_number("seq", get(b"seq"), 1, MAX_ID)
    encoding = _given("enc", get(b"enc"))
    known = _ENCODINGS.get(encoding) or encoding.decode("utf-8", "replace")
    return Envelope(job_id, attempt, source, seq, known, _given("body", get(b"body")))


def read_origin(fields: Mapping[bytes, bytes]) -> tuple[int, str] | None:
    """Return the job number and source name of a raw entry; None if one of them is invalid."""
    try:
        return _job_and_source(fields.get(b"job"), fields.get(b"source"))
    except InvalidMessage:
        return None


# Entries of one source differ only in their number and body. Invalid values, of any size, are not kept.
@lru_cache(_KNOWN_SOURCES)
def _origin(
    version: bytes | None, job: bytes | None, attempt: bytes | None, source: bytes | None
) -> tuple[int, int, str]:
    number = _whole_number("v", version, 0, MAX_ID)
    if number != WIRE_VERSION:
        raise InvalidMessage("unknown-version", f"version {number} is unknown: this trainwire supports 1")
    return (
        _whole_number("job", job, 1, MAX_ID),
        _whole_number("attempt", attempt, 0, MAX_ATTEMPT),
        _source(source),
    )


@lru_cache(_KNOWN_SOURCES)
def _job_and_source(job: bytes | None, source: bytes | None) -> tuple[int, str]:
    return _whole_number("job", job, 1, MAX_ID), _source(source)


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
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidMessage("undecodable", f"body is not {'JSON' if is_json else 'msgpack'}: {exc}") from exc
    check_body(body, len(raw))
    return body


def body_from_object(kind: Kind, value: object) -> Body:
    """Build and validate a body from decoded JSON, where NaN and infinities are names; raise `InvalidMessage`."""
    try:
        body = msgspec.convert(with_floats(value), BODY_TYPES[kind])
    except (msgspec.ValidationError, OverflowError) as exc:
        raise InvalidMessage("wrong-fields", f"{kind} body: {exc}") from exc
    check_body(body)
    return body


def plain_body(envelope: Envelope) -> bytes:
    """Return the body, decompressed if necessary; raise `InvalidMessage` if it exceeds MAX_BODY_BYTES."""
    match envelope.encoding:
        case "msgpack" | "json":
            check_amount("body", len(envelope.body), MAX_BODY_BYTES, "bytes")
            return envelope.body
        case "msgpack+zstd" | "json+zstd":
            return _decompress(envelope.body)
        case unknown:
            raise InvalidMessage("unknown-encoding", f"encoding {unknown!r} is not msgpack or json, or +zstd")


_LEAST_VALUE_BYTES: Final = 3
"""Smallest size of a metric value in msgpack: a name of one character, and a small number."""
_JSON_ELEMENTS_A_VALUE: Final = 4
"""Elements that `json_elements` may count per metric value.

A point with one value has five commas and brackets; each further value adds one.
"""
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


def _given(name: str, value: bytes | None) -> bytes:
    if value is None:
        raise InvalidMessage("missing-field", f"entry has no field {name!r}")
    return value


def _whole_number(name: str, value: bytes | None, least: int, most: int) -> int:
    raw = _given(name, value)
    if len(raw) > 20 or not (raw.isdigit() or raw.removeprefix(b"-").isdigit()):
        raise InvalidMessage("wrong-fields", f"{name} {raw[:40]!r} is not a whole number")
    number = int(raw)
    if not least <= number <= most:
        raise InvalidMessage("out-of-range", f"{name} {number} is not in {least} to {most}")
    return number


def _source(value: bytes | None) -> str:
    raw = _given("source", value)
    try:
        source = raw.decode()
    except UnicodeDecodeError as exc:
        raise InvalidMessage("wrong-fields", f"source {raw[:40]!r} is not UTF-8") from exc
    if not 1 <= len(source) <= MAX_SOURCE_CHARS or "\x00" in source:
        raise InvalidMessage("wrong-fields", f"source must be 1 to {MAX_SOURCE_CHARS} characters without NUL")
    return source


def read_zstd(body: bytes, most_bytes: int) -> bytes:
    """Decompress `body`, at most `most_bytes` + 1 bytes of it, so that the caller can detect a larger one.

    The window is limited to MAX_BODY_BYTES. Raises `ZstdError`.
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
