"""Decodes the body of a trainer's request, with size limits, and checks each entry in it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Final, get_args

import msgspec
import zstandard

from trainwire.gateway.http.problems import ProblemError, problem, wrong_value
from trainwire.schemas.decode_errors import DECODE_ERRORS
from trainwire.schemas.keys import CALLBACK_SOURCE, Kind
from trainwire.schemas.wire.body_decoding import decode_plain, plain_body, read_zstd
from trainwire.schemas.wire.entries import (
    INFERRED_END,
    JOINED_VERSION,
    LOST,
    WIRE_VERSION,
    Encoding,
    Envelope,
    decode_loss,
)
from trainwire.schemas.wire.exchange import CONTENT_TYPE, ExchangeRequest, WireEntry
from trainwire.schemas.wire.messages import Body, Completion, Metrics

CONTENT_TYPES: Final = (CONTENT_TYPE, "application/msgpack", "application/x-msgpack")
MAX_DECODED_BYTES: Final = 64 * 1024 * 1024
"""Maximum bytes that are decompressed to check one request; each message may have `MAX_BODY_BYTES`."""
_ENCODINGS: Final = (*get_args(Encoding), LOST)

_decode: Final = msgspec.msgpack.Decoder(ExchangeRequest).decode


def decode_request(body: bytes, media_type: str, encoding: str, max_bytes: int) -> ExchangeRequest:
    """Decompress and decode the body of a trainer's request.

    Raises a `ProblemError` if the body is invalid, or has more than `max_bytes` after decompression.
    """
    if media_type.partition(";")[0].strip().lower() not in CONTENT_TYPES:
        raise _unsupported(f"Content-Type {media_type!r} is not {CONTENT_TYPE}")
    plain = _decompressed(body, encoding.strip().lower(), max_bytes)
    try:
        return _decode(plain)
    except msgspec.ValidationError as exc:
        raise wrong_value("body", _value_of(exc, plain), str(exc)) from exc
    except DECODE_ERRORS as exc:
        raise ProblemError(problem(400, "not-msgpack", "The body is not msgpack", f"not msgpack: {exc}")) from exc


def _value_of(error: msgspec.ValidationError, plain: bytes) -> object:
    """Return the invalid value in a body, which is located by the path in msgspec's error message.

    If the path cannot be followed to its end, return the innermost container on it.
    """
    try:
        value = msgspec.msgpack.decode(plain)
    except DECODE_ERRORS:  # behind the invalid value
        return ""
    for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", str(error).rpartition("`$")[2]):
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list) and index:
            value = value[int(index)]
        else:
            break
    return value


def check_request(request: ExchangeRequest, job_id: int, *, has_names: bool) -> list[str]:
    """Raise a `ProblemError` or `InvalidMessage` unless all parts of a request belong to `job_id` and one source.

    Returns the names that the metrics give to the job, if `has_names` is True; a metrics body that cannot be
    decoded is then an error. Otherwise metrics are not decoded here: the workers dead-letter invalid ones.
    Completions and losses are always decoded. The decoded bodies may have MAX_DECODED_BYTES in total.
    """
    source = request.source
    if "\x00" in source or source.startswith(CALLBACK_SOURCE):
        raise wrong_value("source", source, f"must not have a NUL, or begin with {CALLBACK_SOURCE!r}")
    _check_heartbeat(request, job_id)
    names = []
    decoded_bytes = 0
    for kind, number, entry in _entries(request):
        place = f"entries.{kind}.{number}"
        if entry.job != job_id:
            raise wrong_value(f"{place}.job", entry.job, f"must be {job_id}, the job in the path")
        if entry.source != source:
            raise wrong_value(f"{place}.source", entry.source, f"must be {source!r}, the source of the request")
        if entry.v != (WIRE_VERSION if entry.parts is None else JOINED_VERSION):
            raise wrong_value(f"{place}.v", entry.v, f"must be {WIRE_VERSION}, or {JOINED_VERSION} with parts")
        if entry.enc not in _ENCODINGS:
            raise wrong_value(f"{place}.enc", entry.enc, f"must be one of {', '.join(_ENCODINGS)}")
        envelope = Envelope(entry.job, entry.attempt, entry.source, entry.seq, entry.enc, entry.body)
        if entry.enc == LOST:
            decode_loss(envelope)
        elif kind == "completions" or (kind == "metrics" and has_names):
            plain = plain_body(envelope)
            decoded_bytes += len(plain)
            if decoded_bytes > MAX_DECODED_BYTES:
                raise _too_large(f"its metrics and completions have more than {MAX_DECODED_BYTES} bytes")
            name = _checked_name(decode_plain(kind, entry.enc, plain), source, place)
            names += [] if name is None else [name]
    return names


def _checked_name(body: Body, source: str, place: str) -> str | None:
    """Return the job name in a message's body; None if it has none.

    Raises a `ProblemError` if the body is a completion of a source for which `source` may not send one.
    """
    if isinstance(body, Completion) and body.of is not None and not _infers_end_of(source, body.of):
        detail = f"must be the source {body.of}{INFERRED_END}… of the request, or missing"
        raise wrong_value(f"{place}.of", body.of, detail)
    return body.name if isinstance(body, Metrics) else None


def _infers_end_of(source: str, of: str) -> bool:
    """Return whether `source` may send the completion of the source `of`.

    When a process was killed, another process that sends its spooled messages also sends its completion. That
    process is a source whose name begins with `of`.
    """
    return source.startswith(f"{of}{INFERRED_END}")


def _check_heartbeat(request: ExchangeRequest, job_id: int) -> None:
    beat, claim = request.heartbeat, request.claim
    if beat is not None and (beat.job, beat.source) != (job_id, request.source):
        raise wrong_value(
            "heartbeat", f"job {beat.job}, source {beat.source}", "must be of the job and the source"
        )
    claimant = hashlib.sha256(request.source.encode()).hexdigest()
    if claim is not None and (claim.holder.job, claim.holder.source) != (job_id, claimant):
        shown = f"job {claim.holder.job}, source {claim.holder.source}"
        raise wrong_value("claim.holder", shown, "must be of the job, and of the SHA-256 of the source")
    if request.has_ended and claim is None:
        raise wrong_value("claim", None, "is required with has_ended")


def _entries(request: ExchangeRequest) -> Iterator[tuple[Kind, int, WireEntry]]:
    for kind, entries in request.entries.items():
        for number, entry in enumerate(entries):
            yield kind, number, entry


def _decompressed(body: bytes, encoding: str, max_bytes: int) -> bytes:
    if encoding in ("", "identity"):
        return body  # its size was checked when it was received
    if encoding != "zstd":
        raise _unsupported(f"Content-Encoding {encoding!r} is not zstd: compress with it, or not at all")
    try:
        plain = read_zstd(body, max_bytes)
    except zstandard.ZstdError as exc:
        raise ProblemError(problem(400, "not-zstd", "The body is not zstd", f"not zstd: {exc}")) from exc
    if len(plain) > max_bytes:
        raise _too_large(f"it has more than {max_bytes} bytes (GATEWAY_MAX_BODY_BYTES)")
    return plain


def _too_large(reason: str) -> ProblemError:
    detail = f"{reason} when decompressed: send it in pieces"
    return ProblemError(problem(413, "too-large", "The body is too large", detail))


def _unsupported(detail: str) -> ProblemError:
    return ProblemError(problem(415, "unsupported", "The format of the body is not supported", detail))
