"""How a message travels: a stream entry of flat fields and one encoded body (docs/wire-format.md)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypeAlias

import msgspec
import zstandard

from schemas.checks import MAX_ATTEMPT, MAX_ID, InvalidMessage, check_body
from schemas.messages import BODY_TYPES, Body, Message
from schemas.non_finite import with_floats
from schemas.routes import Kind

WIRE_VERSION: Final = 1
MAX_SOURCE_CHARS: Final = 200
MAX_BODY_BYTES: Final = 32 * 1024 * 1024
"""Largest body after decompression: what stands between a small compressed entry and all our memory."""
MAX_FREE_BYTES: Final = 1024 * 1024
"""Largest params and tags, each: values of any shape, of which a byte can become a hundred in memory."""
COMPRESS_OVER_BYTES: Final = 2048

LOST: Final = "lost"
"""The encoding of an entry that states which numbers will never be sent; its body is a `Loss`."""
MAX_LOST: Final = 10**9
"""Most numbers that one entry may declare lost."""
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

    Raises `InvalidMessage` where a text or a number has no msgpack form (a lone surrogate, 2**64).
    """
    try:
        body = _encode_msgpack(message.body)
    except (UnicodeEncodeError, OverflowError, TypeError) as exc:
        raise InvalidMessage("unencodable", f"{message.kind} of job {message.job_id}: {exc}") from exc
    encoding: Encoding = "msgpack"
    if len(body) > COMPRESS_OVER_BYTES:
        body, encoding = zstandard.compress(body, 1), "msgpack+zstd"
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


def decode_body(kind: Kind, envelope: Envelope) -> Body:
    """Decode the body strictly; raise `InvalidMessage` with reason `undecodable` or `wrong-fields`."""
    raw = plain_body(envelope)
    if envelope.encoding.startswith("json"):
        try:
            return body_from_object(kind, _known_json(kind, raw))
        except msgspec.ValidationError as exc:
            raise InvalidMessage("wrong-fields", f"{kind} body: {exc}") from exc
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise InvalidMessage("undecodable", f"body is not JSON: {exc}") from exc
    try:
        if kind == "metrics" and len(raw) > MAX_FREE_BYTES:
            _check_free_size(_probe_free(raw))
        body = _strict_decoders[kind](raw)
    except msgspec.ValidationError as exc:
        raise InvalidMessage("wrong-fields", f"{kind} body: {exc}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidMessage("undecodable", f"body is not msgpack: {exc}") from exc
    check_body(body)
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
    """Return the body's msgpack or JSON bytes, decompressed up to `MAX_BODY_BYTES`."""
    match envelope.encoding:
        case "msgpack" | "json":
            return envelope.body
        case "msgpack+zstd" | "json+zstd":
            return _decompress(envelope.body)
        case unknown:
            raise InvalidMessage("unknown-encoding", f"encoding {unknown!r} is not msgpack or json, or +zstd")


class _Free(msgspec.Struct):
    """The values of any shape in a metrics body, not decoded."""

    params: msgspec.Raw = msgspec.Raw()
    tags: msgspec.Raw = msgspec.Raw()


_probe_free = msgspec.msgpack.Decoder(_Free).decode


_find_known: Final[dict[Kind, Callable[[bytes], msgspec.Struct]]] = {
    kind: msgspec.json.Decoder(
        msgspec.defstruct(
            f"Known{body_type.__name__}",
            [(field.name, msgspec.Raw, msgspec.Raw()) for field in msgspec.structs.fields(body_type)],
        )
    ).decode
    for kind, body_type in BODY_TYPES.items()
}


def _known_json(kind: Kind, raw: bytes) -> dict[str, Any]:
    """Decode the fields that a body has, as far as they were said; nothing is built of any others."""
    known = msgspec.structs.asdict(_find_known[kind](raw))
    said = {name: value for name, value in known.items() if memoryview(value).nbytes}
    if kind == "metrics":
        _check_free_size(_Free(**{name: said[name] for name in _Free.__struct_fields__ if name in said}))
    return {name: msgspec.json.decode(value) for name, value in said.items()}


def _check_free_size(free: _Free) -> None:
    for name, value in (("params", free.params), ("tags", free.tags)):
        if len(memoryview(value)) > MAX_FREE_BYTES:
            raise InvalidMessage("too-large", f"{name} are over {MAX_FREE_BYTES} bytes")


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
        plain = zstandard.ZstdDecompressor().stream_reader(body).read(MAX_BODY_BYTES + 1)
    except zstandard.ZstdError as exc:
        raise InvalidMessage("undecodable", f"body is not zstd: {exc}") from exc
    if len(plain) > MAX_BODY_BYTES:
        raise InvalidMessage("too-large", f"body is over {MAX_BODY_BYTES} bytes when decompressed")
    return plain
