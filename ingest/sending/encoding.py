"""Encodes message bodies as stream entries, and joins small messages into one entry.

Lines, points and fields that cannot be encoded are left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
import zstandard
from msgspec.structs import replace

from trainwire.ingest.sanitize import StructT, repaired
from trainwire.ingest.sending.size_limits import fitted
from trainwire.ingest.sending.unacked import EncodedMessage
from trainwire.schemas.keys import FREQUENT_KINDS, Kind
from trainwire.schemas.tracing import TRACEPARENT
from trainwire.schemas.wire.entries import Entry, encode_entry
from trainwire.schemas.wire.joining import item_count as joined_items
from trainwire.schemas.wire.joining import joined_body
from trainwire.schemas.wire.messages import Body, Logs, Message, Metrics

if TYPE_CHECKING:
    from trainwire.ingest.identity.origin import Origin

logger = logging.getLogger("trainwire.ingest")

JOINED_BYTES: Final = 64 * 1024
"""Size of a body from which it is not joined with the next one."""

_decode_logs: Final = msgspec.msgpack.Decoder(Logs).decode
_decode_metrics: Final = msgspec.msgpack.Decoder(Metrics).decode


class BodyEncoder:
    """Encodes the message bodies of one source as stream entries.

    Values that exceed the limits of the wire format are shortened; lines, points and fields that cannot be
    encoded are left out. Both are counted with `count_dropped` (kind, number), and cause a warning.
    """

    def __init__(self, origin: Origin, count_dropped: Callable[[str, int], None]) -> None:
        self._origin = origin
        self._count_dropped = count_dropped
        self._shortened_kinds: set[Kind] = set()

    def encode(self, kind: Kind, seq: int, body: Body) -> Entry | None:
        """Return the stream entry for `body`, or for the part of it that can be encoded; None if no part can.

        Raises only `MemoryError`.
        """
        body = self._shortened(kind, body)
        entry = self._encoded(kind, seq, body)
        if entry is not None:
            return entry
        kept, dropped = sanitized(body)
        entry = None if kept is None else self._encoded(kind, seq, kept)
        if entry is None:
            dropped = item_count(body)
        if dropped:
            self._count_dropped(kind, dropped)
            logger.warning("job %s: %s of %s cannot be sent: dropped", self._origin.job_id, dropped, kind)
        return entry

    def _shortened(self, kind: Kind, body: Body) -> Body:
        """Return `body` within the limits of the wire format; warn once for each kind of message."""
        try:
            body, cuts = fitted(body)
        except Exception:
            # Any error, such as one of a value's own methods: `encode` sends the part that can be encoded.
            logger.debug("%s of job %s cannot be measured", kind, self._origin.job_id, exc_info=True)
            return body
        if cuts and kind not in self._shortened_kinds:
            self._shortened_kinds.add(kind)
            logger.warning(
                "job %s: %s too large: %s (docs/wire-format.md)", self._origin.job_id, kind, "; ".join(cuts[:10])
            )
        if cuts:
            self._count_dropped("values", len(cuts))
        return body

    def _encoded(self, kind: Kind, seq: int, body: Body) -> Entry | None:
        origin = self._origin
        try:
            message = Message(kind, origin.job_id, origin.attempt, origin.source, seq, body)
            return encode_entry(message, origin.traceparent)
        except MemoryError:
            raise  # the caller encodes the body again later
        except Exception:
            # Any error: the call that reported these values has returned, and later messages must be sent.
            logger.debug("%s of job %s cannot be encoded as they are", kind, origin.job_id, exc_info=True)
            return None


def item_count(body: Body) -> int:
    """Return the number of lines or points in a body; 1 for a body without any."""
    return max(1, joined_items(body))


def sanitized(body: Body) -> tuple[Body | None, int]:
    """Return `body` with invalid Unicode replaced, without unencodable parts, and the number of these parts.

    The parts are single lines, points or optional fields. The body is None if nothing is left.
    """
    whole = _encodable(body)
    if whole is not None:
        return whole, 0
    if isinstance(body, Logs):
        return _sanitized_logs(body)
    if isinstance(body, Metrics):
        return _sanitized_metrics(body)
    kept, omitted = _sanitized_fields(body)
    return (None, 1) if kept is None else (kept, omitted)


def _sanitized_logs(body: Logs) -> tuple[Logs | None, int]:
    levels = body.levels or [None] * len(body.lines)
    single = [
        _encodable(replace(body, lines=[line], ts=[ts], levels=[level]))
        for line, ts, level in zip(body.lines, body.ts, levels, strict=True)
    ]
    kept = [one for one in single if one is not None]
    if not kept:
        return None, len(single)
    known = [(one.levels or [None])[0] for one in kept]
    joined = replace(
        kept[0],
        lines=[one.lines[0] for one in kept],
        ts=[one.ts[0] for one in kept],
        levels=known if any(known) else None,
    )
    return joined, len(single) - len(kept)


def _sanitized_metrics(body: Metrics) -> tuple[Metrics | None, int]:
    points = [point for point in map(_encodable, body.points) if point is not None]
    header, omitted = _sanitized_fields(replace(body, points=[]))
    omitted += len(body.points) - len(points)
    nothing = Metrics(rank=body.rank, started_at=body.started_at, resume_step=body.resume_step)
    kept = replace(nothing) if header is None else header
    kept.points = points
    return (None if kept == nothing else kept), omitted


def _sanitized_fields(body: StructT) -> tuple[StructT | None, int]:
    """Return the body without the optional fields that cannot be encoded, and the number of these fields."""
    fields = msgspec.structs.fields(type(body))
    needed = {field.name: getattr(body, field.name) for field in fields if field.required}
    kept: dict[str, Any] = {}
    omitted = 0
    for name in (field.name for field in fields if not field.required):
        part = _encodable(type(body)(**needed, **{name: getattr(body, name)}))
        if part is None:
            omitted += 1
        else:
            kept[name] = getattr(part, name)
    return _encodable(type(body)(**needed, **kept)), omitted


def _encodable(part: StructT) -> StructT | None:
    """Return a body, or a part of one, with invalid Unicode replaced; None if it still cannot be encoded."""
    try:
        fixed = repaired(part)
        msgspec.msgpack.encode(fixed)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - values of foreign types raise any error
        return None
    return fixed


def joined(kind: Kind, messages: Sequence[EncodedMessage]) -> list[EncodedMessage]:
    """Join consecutive messages that belong together; return the messages to send, in order.

    A joined one has the number of its last message. The workers store each of its messages once, even if some of
    them were sent before.
    """
    if kind not in FREQUENT_KINDS or len(messages) < 2:
        return list(messages)
    made: list[EncodedMessage] = []
    group: list[EncodedMessage] = []
    parts: list[int] = []
    body: Body | None = None
    size_bytes = 0
    for message in messages:
        single, plain_bytes = _decoded(kind, message.entry)
        is_next = bool(group) and message.seq == group[-1].seq + 1 and size_bytes + plain_bytes <= JOINED_BYTES
        both = joined_body(body, single) if is_next and body is not None and single is not None else None
        if both is None:
            made += _as_one(kind, group, parts, body)
            group, parts, size_bytes = [], [], 0
        group.append(message)
        parts.append(0 if single is None else joined_items(single))
        body, size_bytes = both or single, size_bytes + plain_bytes
    return made + _as_one(kind, group, parts, body)


def _as_one(
    kind: Kind, group: Sequence[EncodedMessage], parts: Sequence[int], body: Body | None
) -> list[EncodedMessage]:
    """Return the one entry of a group of messages, which has the joined `body`; a single message as it is."""
    if len(group) < 2 or body is None:
        return list(group)
    entry, seq = group[-1].entry, group[-1].seq
    job, attempt, source = int(entry["job"]), int(entry["attempt"]), str(entry["source"])
    encoded = encode_entry(Message(kind, job, attempt, source, seq, body, tuple(parts)))
    if TRACEPARENT in entry:
        encoded[TRACEPARENT] = entry[TRACEPARENT]
    return [EncodedMessage(seq, encoded, items=sum(parts))]


def _decoded(kind: Kind, entry: Entry) -> tuple[Body | None, int]:
    """Return the body of an entry and its size in bytes; None if it is large, or declares messages lost."""
    body, encoding = entry["body"], entry["enc"]
    if not isinstance(body, bytes) or len(body) > JOINED_BYTES or encoding not in ("msgpack", "msgpack+zstd"):
        return None, JOINED_BYTES
    plain = zstandard.decompress(body) if encoding == "msgpack+zstd" else body
    if len(plain) > JOINED_BYTES:
        return None, JOINED_BYTES
    return (_decode_logs if kind == "logs" else _decode_metrics)(plain), len(plain)
