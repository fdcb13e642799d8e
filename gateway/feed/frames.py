"""Events encoded for WebSockets and server-sent events, once for all clients."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Final

import msgspec

from trainwire.gateway.feed.job_feed import FeedEvent
from trainwire.schemas.events import Event, encode_event

_FINAL_TEXT: Final = 0x81
"""First byte of an unfragmented text frame (RFC 6455, 5.2)."""

_encode = msgspec.json.Encoder().encode


class Frame:
    """One event as JSON, and the position of a client after it; None in the list of jobs, which has none."""

    def __init__(self, kind: str, event: bytes, position: str | None = None) -> None:
        self.kind = kind
        self._event = event
        self._position = position

    def at(self, position: str) -> Frame:
        """Return the same event with another position."""
        return Frame(self.kind, self._event, position)

    @cached_property
    def text(self) -> bytes:
        """The text message of a WebSocket."""
        head = b"" if self._position is None else b'"position":"%s",' % self._position.encode()
        return b'{%s"event":%s}' % (head, self._event)

    @cached_property
    def wire(self) -> bytes:
        """The bytes on a WebSocket: `text` as an unmasked frame (RFC 6455)."""
        size = len(self.text)
        if size < 126:
            head = struct.pack("!BB", _FINAL_TEXT, size)
        elif size < 2**16:
            head = struct.pack("!BBH", _FINAL_TEXT, 126, size)
        else:
            head = struct.pack("!BBQ", _FINAL_TEXT, 127, size)
        return head + self.text

    @cached_property
    def sse(self) -> bytes:
        """The server-sent event; the JSON needs no escaping, because it has no line breaks."""
        head = b"" if self._position is None else b"id: %s\n" % self._position.encode()
        return b"%sevent: %s\ndata: %s\n\n" % (head, self.kind.encode(), self._event)


class FrameBatch:
    """Frames that are sent to each client in one write."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        self.frames = frames

    @cached_property
    def wire(self) -> bytes:
        """All frames for a WebSocket."""
        return b"".join(frame.wire for frame in self.frames)

    @cached_property
    def sse(self) -> bytes:
        """All frames as server-sent events."""
        return b"".join(frame.sse for frame in self.frames)


def encode_events(events: Iterable[FeedEvent]) -> FrameBatch:
    """Return the frames of events of one job."""
    return FrameBatch([event_frame(event, str(position)) for event, position in events])


def event_frame(event: Event, position: str | None = None) -> Frame:
    """Return the frame of an event."""
    return Frame(type_of(event), encode_event(event), position)


def type_of(event: Event) -> str:
    """Return the `type` that an event has as JSON."""
    return str(event.__struct_config__.tag)


def gateway_frame(kind: str, position: str | None = None, **fields: Any) -> Frame:
    """Return a frame that the gateway itself makes: snapshot, resumed, job or resync."""
    return Frame(kind, _encode({"type": kind, **fields}), position)


RESYNC: Final = FrameBatch([gateway_frame("resync")])
