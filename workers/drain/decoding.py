"""Raw stream entries into messages: strictly first, and where only the text is broken, by making it visible."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgpack
import msgspec
import structlog
import zstandard

from trainwire.schemas.keys import Kind
from trainwire.schemas.limits import MAX_BODY_BYTES, MAX_REPAIRED_ELEMENTS, UNCOUNTED_BYTES
from trainwire.schemas.messages import Body, Message
from trainwire.schemas.structure import json_elements, msgpack_elements
from trainwire.schemas.validation import InvalidMessage
from trainwire.schemas.wire import (
    LOST,
    Envelope,
    body_from_object,
    decode_loss,
    decode_plain,
    open_envelope,
    plain_body,
)

log = structlog.get_logger("trainwire.workers.drain.decoding")

NUL_SHOWN: Final = "\u2400"
BROKEN_SHOWN: Final = "\ufffd"
MAX_DETAIL_CHARS: Final = 2000
_FIELDS: Final = 7
_FIELD_BYTES: Final = 100
MAX_REPAIRED_BYTES: Final = 16 * 1024 * 1024
"""The tolerant decoders build everything before it is checked; a larger body is dead-lettered instead."""
_OF_THE_ENTRY: Final = (
    *(ArithmeticError, AssertionError, AttributeError, BufferError, LookupError),
    *(RuntimeError, TypeError, ValueError, msgspec.MsgspecError, msgpack.UnpackException, zstandard.ZstdError),
)
"""What a decoder raises because of its input. Others, such as a time limit or a lack of memory, are no verdict."""


@dataclass(frozen=True, slots=True)
class RawEntry:
    """One entry as Redis holds it."""

    entry_id: str
    fields: Mapping[bytes, bytes]

    @property
    def size_bytes(self) -> int:
        """Bytes of all values."""
        return sum(map(len, self.fields.values()))

    @property
    def held_bytes(self) -> int:
        """About how much memory it takes: names count too, and each field beyond those of a message."""
        extra = max(0, len(self.fields) - _FIELDS)
        return self.size_bytes + sum(map(len, self.fields)) + _FIELD_BYTES * (1 + extra)


@dataclass(frozen=True, slots=True)
class Rejected:
    """An entry that can never be stored, why, and what its envelope says where that much could be read."""

    raw: RawEntry
    reason: str
    detail: str
    job_id: int | None = None
    attempt: int = 0
    source: str | None = None
    seq: int | None = None
    """The number that it takes in its source's position; None where it takes none, and is in no sum."""


@dataclass(frozen=True, slots=True)
class Lost:
    """An entry by which a source declares the numbers `seq` to `last` lost."""

    job_id: int
    attempt: int
    source: str
    seq: int
    last: int
    reason: str
    began_ns: int | None


def decode(kind: Kind, raw: RawEntry) -> tuple[Message | Lost | Rejected, int]:
    """Return the entry's message or its statement of loss, or the reason why there can be none.

    The second value is the size in bytes of its body after decompression. Raises what is no fault of the entry as
    far as can be seen here: a time limit, a lack of memory.
    """
    envelope: Envelope | None = None
    size_bytes = 0
    try:
        envelope = open_envelope(raw.fields)
        if envelope.encoding == LOST:
            return _lost(envelope), len(envelope.body)
        plain = plain_body(envelope)
        size_bytes = len(plain)
        body = _body(kind, envelope.encoding, plain)
    except InvalidMessage as exc:
        if exc.reason == "too-large":
            size_bytes = size_bytes or MAX_BODY_BYTES  # it was decompressed so far
        return _rejected(raw, envelope, exc.reason, str(exc)), size_bytes
    except _OF_THE_ENTRY as exc:
        # Nobody thought of this one; as an exception it would stop its stream.
        log.exception("decoding.failed", entry_id=raw.entry_id, kind=kind)
        return _rejected(raw, envelope, "undecodable", f"{type(exc).__name__}: {exc}"), size_bytes
    return Message(kind, envelope.job_id, envelope.attempt, envelope.source, envelope.seq, body), size_bytes


def rejected(raw: RawEntry, reason: str, detail: str) -> Rejected:
    """Return the entry as one that is not to be decoded, with its envelope where that can be read."""
    try:
        return _rejected(raw, open_envelope(raw.fields), reason, detail)
    except InvalidMessage:
        return _rejected(raw, None, reason, detail)


def _lost(envelope: Envelope) -> Lost:
    loss = decode_loss(envelope)
    origin = (envelope.job_id, envelope.attempt, envelope.source, envelope.seq)
    return Lost(*origin, loss.last, loss.reason, loss.started_at)


def _rejected(raw: RawEntry, envelope: Envelope | None, reason: str, detail: str) -> Rejected:
    detail = detail[:MAX_DETAIL_CHARS]
    if envelope is None:
        return Rejected(raw, reason, detail)
    # A statement of loss that cannot be read is about a number; it is not the message that has it.
    seq = None if envelope.encoding == LOST else envelope.seq
    return Rejected(raw, reason, detail, envelope.job_id, envelope.attempt, envelope.source, seq)


def visible(text: str) -> str:
    """Return `text` as Postgres can hold it: NUL and lone surrogates become visible signs, nothing is dropped."""
    if "\x00" in text:
        text = text.replace("\x00", NUL_SHOWN)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = "".join(BROKEN_SHOWN if "\ud800" <= char <= "\udfff" else char for char in text)
    return text


def _body(kind: Kind, encoding: str, plain: bytes) -> Body:
    try:
        return decode_plain(kind, encoding, plain)
    except InvalidMessage as strict:
        repaired = None if strict.reason == "too-large" else _repaired(encoding, plain)
        if repaired is None:
            raise
        try:
            return body_from_object(kind, repaired)
        except InvalidMessage:
            raise strict from None


def _repaired(encoding: str, plain: bytes) -> object | None:
    """Decode with tolerance for broken text only; None where the structure itself cannot be read."""
    if len(plain) > MAX_REPAIRED_BYTES:
        return None
    is_json = encoding.startswith("json")
    if len(plain) > UNCOUNTED_BYTES:
        count = (json_elements if is_json else msgpack_elements)(plain, MAX_REPAIRED_ELEMENTS)
        if count > MAX_REPAIRED_ELEMENTS:
            return None
    try:
        if is_json:
            return _text_of(json.loads(plain.decode("utf-8", "replace")))
        return _text_of(msgpack.unpackb(plain, unicode_errors="surrogateescape", strict_map_key=False))
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        return None


def _text_of(value: object) -> object:
    """Turn byte strings into text and make what is no Unicode visible, all the way down."""
    match value:
        case bytes():
            return value.decode("utf-8", "replace")
        case str():
            # surrogateescape keeps each invalid byte apart from its valid neighbours.
            return visible(value)
        case list():
            return [_text_of(item) for item in value]
        case dict():
            return {_text_of(key): _text_of(item) for key, item in value.items()}
        case _:
            return value
