"""Raw stream entries into messages: strictly first, and where only the text is broken, by making it visible."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgpack
import structlog

from schemas.checks import InvalidMessage
from schemas.messages import Body, Message
from schemas.routes import Kind
from schemas.wire import LOST, Envelope, body_from_object, decode_body, decode_loss, open_envelope, plain_body

log = structlog.get_logger("workers.decoding")

NUL_SHOWN: Final = "\u2400"
BROKEN_SHOWN: Final = "\ufffd"
MAX_DETAIL_CHARS: Final = 2000
MAX_REPAIRED_BYTES: Final = 16 * 1024 * 1024
"""The tolerant decoders build everything before it is checked; a larger body is buried instead."""


@dataclass(frozen=True, slots=True)
class RawEntry:
    """One entry as Redis holds it."""

    entry_id: str
    fields: Mapping[bytes, bytes]

    @property
    def size_bytes(self) -> int:
        """Bytes of all values."""
        return sum(map(len, self.fields.values()))


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


def decode(kind: Kind, raw: RawEntry) -> Message | Lost | Rejected:
    """Return the entry's message or its statement of loss, or the reason why there can be none."""
    envelope: Envelope | None = None
    try:
        envelope = open_envelope(raw.fields)
        if envelope.encoding == LOST:
            return _lost(envelope)
        body = _body(kind, envelope)
    except InvalidMessage as exc:
        return _rejected(raw, envelope, exc.reason, str(exc))
    except Exception as exc:
        # Nobody thought of this one; as an exception it would stop its stream for ever.
        log.exception("decoding.failed", entry_id=raw.entry_id, kind=kind)
        return _rejected(raw, envelope, "undecodable", f"{type(exc).__name__}: {exc}")
    return Message(kind, envelope.job_id, envelope.attempt, envelope.source, envelope.seq, body)


def _lost(envelope: Envelope) -> Lost:
    loss = decode_loss(envelope)
    origin = (envelope.job_id, envelope.attempt, envelope.source, envelope.seq)
    return Lost(*origin, loss.last, loss.reason, loss.started_at)


def _rejected(raw: RawEntry, envelope: Envelope | None, reason: str, detail: str) -> Rejected:
    detail = detail[:MAX_DETAIL_CHARS]
    if envelope is None:
        return Rejected(raw, reason, detail)
    return Rejected(raw, reason, detail, envelope.job_id, envelope.attempt, envelope.source, envelope.seq)


def visible(text: str) -> str:
    """Return `text` as Postgres can hold it: NUL and lone surrogates become visible signs, nothing is dropped."""
    if "\x00" in text:
        text = text.replace("\x00", NUL_SHOWN)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = "".join(BROKEN_SHOWN if "\ud800" <= char <= "\udfff" else char for char in text)
    return text


def _body(kind: Kind, envelope: Envelope) -> Body:
    try:
        return decode_body(kind, envelope)
    except InvalidMessage as strict:
        repaired = None if strict.reason == "too-large" else _repaired(envelope)
        if repaired is None:
            raise
        try:
            return body_from_object(kind, repaired)
        except InvalidMessage:
            raise strict from None


def _repaired(envelope: Envelope) -> object | None:
    """Decode with tolerance for broken text only; None where the structure itself cannot be read."""
    try:
        raw = plain_body(envelope)
        if len(raw) > MAX_REPAIRED_BYTES:
            return None
        if envelope.encoding.startswith("json"):
            return _text_of(json.loads(raw.decode("utf-8", "replace")))
        return _text_of(msgpack.unpackb(raw, unicode_errors="surrogateescape", strict_map_key=False))
    except (InvalidMessage, ValueError, TypeError, RecursionError, msgpack.UnpackException):
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
