"""Encodes messages as stream entries, and validates the fields of raw entries (docs/wire-format.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, Literal, TypeAlias, get_args

import msgspec
import zstandard

from trainwire.schemas.decode_errors import DECODE_ERRORS
from trainwire.schemas.tracing import TRACEPARENT
from trainwire.schemas.wire.limits import MAX_BODY_BYTES, MAX_SOURCE_CHARS
from trainwire.schemas.wire.messages import Message
from trainwire.schemas.wire.validation import MAX_ATTEMPT, MAX_ID, InvalidMessage, check_amount

WIRE_VERSION: Final = 1
JOINED_VERSION: Final = 2
"""Version of an entry that has several messages; workers that do not know it dead-letter the entry."""
MAX_PARTS_CHARS: Final = 10_000
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
    parts: tuple[int, ...] = ()
    """In an entry of several messages: how many lines or points of the body belong to each."""


class Loss(msgspec.Struct, omit_defaults=True, kw_only=True, frozen=True):
    """Body of an entry that declares messages lost: its source will never send the entry's `seq` to `last`.

    `reason` is a slug by which losses are counted. `started_at` is the start time of the source, as in messages.
    """

    last: int
    reason: str
    started_at: int | None = None


Entry: TypeAlias = dict[str, str | int | bytes]

_JOINED: Final = str(JOINED_VERSION).encode()
_encode_msgpack = msgspec.msgpack.Encoder().encode
_decode_loss = msgspec.msgpack.Decoder(Loss).decode
_decode_json_loss = msgspec.json.Decoder(Loss).decode
_is_reason = re.compile(r"[a-z-]{1,40}").fullmatch


def encode_entry(message: Message, traceparent: str | None = None) -> Entry:
    """Return the XADD fields of a message; its body is msgpack, compressed if larger than COMPRESS_OVER_BYTES.

    `traceparent` identifies the span of the run, if it is traced (docs/tracing.md). Raises `InvalidMessage` if a
    value cannot be encoded (a lone surrogate, 2**64), or if the body exceeds MAX_BODY_BYTES.
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
    entry = _entry(message.job_id, message.attempt, message.source, message.seq, encoding=encoding, body=body)
    if message.parts:
        entry |= {"v": JOINED_VERSION, "parts": ",".join(map(str, message.parts))}
    return entry if traceparent is None else entry | {TRACEPARENT: traceparent}


def raw_value(value: str | int | bytes) -> bytes:
    """Return the value of an entry's field as Redis stores it."""
    return value if isinstance(value, bytes) else str(value).encode()


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
    except DECODE_ERRORS as exc:
        raise InvalidMessage("wrong-fields", f"body of a loss: {exc}") from exc
    if not 0 <= loss.last - envelope.seq < MAX_LOST or loss.last > MAX_ID:
        raise InvalidMessage(
            "out-of-range", f"numbers {envelope.seq} to {loss.last} are not 1 to {MAX_LOST:,} lost messages"
        )
    if not _is_reason(loss.reason):
        raise InvalidMessage("wrong-fields", f"reason {loss.reason[:40]!r} is not 1 to 40 letters a-z and hyphens")
    return loss


def open_envelope(fields: Mapping[bytes, bytes]) -> Envelope:
    """Validate and return the fields of a raw entry, without decoding its body; any encoding is accepted.

    Raises `InvalidMessage`, whose text names the field, its value and the allowed values.
    """
    get = fields.get
    job_id, attempt, source = _origin(get(b"v"), get(b"job"), get(b"attempt"), get(b"source"))
    seq = _whole_number("seq", get(b"seq"), 1, MAX_ID)
    encoding = _given("enc", get(b"enc"))
    known = _ENCODINGS.get(encoding) or encoding.decode("utf-8", "replace")
    parts = _parts(_given("parts", get(b"parts"))) if get(b"v") == _JOINED else ()
    return Envelope(job_id, attempt, source, seq, known, _given("body", get(b"body")), parts)


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
    if number not in (WIRE_VERSION, JOINED_VERSION):
        raise InvalidMessage("unknown-version", f"version {number} is unknown: this trainwire supports 1 and 2")
    return (
        _whole_number("job", job, 1, MAX_ID),
        _whole_number("attempt", attempt, 0, MAX_ATTEMPT),
        _source(source),
    )


@lru_cache(_KNOWN_SOURCES)
def _job_and_source(job: bytes | None, source: bytes | None) -> tuple[int, str]:
    return _whole_number("job", job, 1, MAX_ID), _source(source)


def _parts(value: bytes) -> tuple[int, ...]:
    numbers = value.split(b",") if len(value) <= MAX_PARTS_CHARS else []
    if not numbers or not all(number.isdigit() and len(number) <= 4 for number in numbers):
        raise InvalidMessage("wrong-fields", f"parts {value[:40]!r} is not a list of numbers of lines or points")
    return tuple(map(int, numbers))


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
