"""Decodes stream entries into messages, and estimates how much memory a decoded entry takes.

Decoding is strict at first. If an entry fails only because of invalid text (NUL, bytes that are not UTF-8, lone
surrogates), it is decoded again with replacement characters, so that a message is not rejected because of a few
bad characters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from sys import getsizeof
from typing import Final, TypeAlias

import msgpack
import msgspec
import structlog
import zstandard

from trainwire.schemas.keys import Kind
from trainwire.schemas.wire.body_decoding import body_from_object, decode_plain, plain_body
from trainwire.schemas.wire.entries import LOST, decode_loss, open_envelope, read_origin
from trainwire.schemas.wire.joining import check_parts
from trainwire.schemas.wire.limits import MAX_BODY_BYTES, MAX_REPAIRED_ELEMENTS, UNCOUNTED_BYTES
from trainwire.schemas.wire.messages import FREE_MAPS, Body, Logs, Message, Metrics
from trainwire.schemas.wire.structure import json_elements, msgpack_elements
from trainwire.schemas.wire.validation import InvalidMessage, free_elements
from trainwire.stores.postgres.storable_text import storable_text

log = structlog.get_logger("trainwire.workers.drain.decoding")

MAX_DETAIL_CHARS: Final = 2000
_MESSAGE_FIELDS: Final = 7
_FIELD_BYTES: Final = 100
"""Estimated memory overhead in Python of one entry; also of each field beyond the number that a message has."""
MAX_REPAIRED_BYTES: Final = 16 * 1024 * 1024
"""Maximum size of a body to decode with replacement characters; larger ones are dead-lettered.

The lenient decoders build the whole object before it is validated.
"""
_INPUT_ERRORS: Final = (
    *(ArithmeticError, AssertionError, AttributeError, BufferError, LookupError),
    *(RuntimeError, TypeError, ValueError, msgspec.MsgspecError, msgpack.UnpackException, zstandard.ZstdError),
)
"""Exceptions that decoders raise for bad input.

Any other exception (a task's time limit, MemoryError) may have a cause outside the entry.
"""
_ROW_BYTES: Final = 100
_POINT_BYTES: Final = 250
_VALUE_BYTES: Final = 60
_LONG_CHARS: Final = 500
_ELEMENT_BYTES: Final = 80


@dataclass(slots=True, eq=False)
class RawEntry:
    """A stream entry as read from Redis, not decoded."""

    entry_id: str
    fields: Mapping[bytes, bytes]
    size_bytes: int = field(init=False)
    """Total size of the values in bytes."""
    held_bytes: int = field(init=False)
    """Estimated memory in bytes: field names, values, and overheads for the entry and for surplus fields."""

    def __post_init__(self) -> None:
        """Compute `size_bytes` and `held_bytes` once, because they are needed several times for each entry."""
        fields = self.fields
        self.size_bytes = sum(map(len, fields.values()))
        self.held_bytes = self.size_bytes + sum(map(len, fields)) + _FIELD_BYTES
        if len(fields) > _MESSAGE_FIELDS:
            self.held_bytes += _FIELD_BYTES * (len(fields) - _MESSAGE_FIELDS)


@dataclass(frozen=True, slots=True)
class Rejected:
    """An entry that can never be stored, with the reason.

    Job, attempt, source and number are set if all of them are readable.
    """

    raw: RawEntry
    reason: str
    detail: str
    job_id: int | None = None
    attempt: int = 0
    source: str | None = None
    seq: int | None = None
    """The message number; None if the entry has none. Such a dead letter is not in the counts of any source."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A source's declaration that its messages from number `seq` to `last` (inclusive) are lost.

    `began_ns` is the start time of the source in nanoseconds since 1970, or None.
    """

    job_id: int
    attempt: int
    source: str
    seq: int
    last: int
    reason: str
    began_ns: int | None


Content: TypeAlias = Message | Lost | Rejected
"""The result of decoding an entry: a message, a declaration of lost messages, or a rejection."""


def decode(kind: Kind, raw: RawEntry) -> tuple[Content, int]:
    """Decode an entry; return the result and the size of its body in bytes after decompression.

    Invalid input is returned as `Rejected`, with the size that was decompressed before it was rejected. Exceptions
    are raised only for causes that may lie outside the entry, such as a task's time limit or a `MemoryError`.
    """
    size_bytes = 0
    try:
        envelope = open_envelope(raw.fields)
        origin = (envelope.job_id, envelope.attempt, envelope.source, envelope.seq)
        if envelope.encoding == LOST:
            loss = decode_loss(envelope)
            return Lost(*origin, loss.last, loss.reason, loss.started_at), len(envelope.body)
        plain = plain_body(envelope)
        size_bytes = len(plain)
        body = _decode_body(kind, envelope.encoding, plain)
        if envelope.parts:
            check_parts(envelope.seq, envelope.parts, body)
        return Message(kind, *origin, body, envelope.parts), size_bytes
    except InvalidMessage as exc:
        if exc.reason == "too-large":
            size_bytes = size_bytes or MAX_BODY_BYTES  # decompression stopped at this limit
        return rejected(raw, exc.reason, str(exc)), size_bytes
    except _INPUT_ERRORS as exc:
        # An error that no validation foresaw. Raised, it would stop the stream at this entry.
        job_id, _ = read_origin(raw.fields) or (None, None)
        log.exception("decoding.failed", entry_id=raw.entry_id, kind=kind, job_id=job_id)
        return rejected(raw, "undecodable", f"{type(exc).__name__}: {exc}"), size_bytes


def rejected(raw: RawEntry, reason: str, detail: str) -> Rejected:
    """Return a `Rejected` for an entry without decoding its body.

    `detail` is truncated to `MAX_DETAIL_CHARS`. Job, attempt, source and number are set if all of them are valid.
    """
    detail = detail[:MAX_DETAIL_CHARS]
    try:
        envelope = open_envelope(raw.fields)
    except _INPUT_ERRORS:
        return Rejected(raw, reason, detail)
    # In a declaration of loss, `seq` is the first lost number, not the number of this entry.
    seq = None if envelope.encoding == LOST else envelope.seq
    return Rejected(raw, reason, detail, envelope.job_id, envelope.attempt, envelope.source, seq)


def _decode_body(kind: Kind, encoding: str, plain: bytes) -> Body:
    try:
        return decode_plain(kind, encoding, plain)
    except InvalidMessage as strict:
        lenient = None if strict.reason == "too-large" else _decode_leniently(encoding, plain)
        if lenient is None:
            raise
        try:
            return body_from_object(kind, lenient)
        except InvalidMessage:
            raise strict from None


def _decode_leniently(encoding: str, plain: bytes) -> object | None:
    """Decode a body and replace invalid text.

    Return None if the body is not valid JSON or msgpack, is too large, or has too many elements.
    """
    if len(plain) > MAX_REPAIRED_BYTES:
        return None
    is_json = encoding.startswith("json")
    if len(plain) > UNCOUNTED_BYTES:
        count = (json_elements if is_json else msgpack_elements)(plain, MAX_REPAIRED_ELEMENTS)
        if count > MAX_REPAIRED_ELEMENTS:
            return None
    try:
        if is_json:
            return _sanitized(json.loads(plain.decode("utf-8", "replace")))
        return _sanitized(msgpack.unpackb(plain, unicode_errors="surrogateescape", strict_map_key=False))
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        return None


def _sanitized(value: object) -> object:
    """Return `value` with byte strings decoded and invalid characters replaced, at all levels."""
    match value:
        case bytes():
            return value.decode("utf-8", "replace")
        case str():
            # surrogateescape has turned each invalid byte into one lone surrogate.
            return storable_text(value)
        case list():
            return [_sanitized(item) for item in value]
        case dict():
            return {_sanitized(key): _sanitized(item) for key, item in value.items()}
        case _:
            return value


def memory_bytes(content: Content, plain_bytes: int) -> int:
    """Estimate the memory in bytes that a decoded entry takes until its transaction is committed.

    The arguments are the two values that `decode` returns.
    """
    if isinstance(content, Message):
        held = _message_bytes(content, plain_bytes)
    else:
        held = content.raw.held_bytes if isinstance(content, Rejected) else 0
    return _ROW_BYTES + max(held, plain_bytes)


def _message_bytes(message: Message, plain_bytes: int) -> int:
    match message.body:
        case Logs() as body:
            lines = body.lines
            chars = sum(map(len, lines))
            if chars > _LONG_CHARS * len(lines):
                # A Python str with one character beyond U+FFFF takes four bytes for each of its characters.
                chars = sum(map(getsizeof, lines))
            return chars + (160 if body.levels else 100) * len(lines)
        case Metrics() as body:
            values = sum(len(point.values) for point in body.points)
            points = _POINT_BYTES * len(body.points) + _VALUE_BYTES * values
            # Names and paths take about as much as in the body.
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
