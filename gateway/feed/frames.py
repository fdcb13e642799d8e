"""Frames: events encoded for WebSockets and server-sent events, once for all clients."""

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
    """One event, encoded once for all WebSockets (`wire`) and once for all server-sent events (`sse`).

    It includes the client's position after the event: None for events of the job list, which has no positions,
    and for `resync`.
    """

    def __init__(self, kind: str, event: bytes, position: str | None = None) -> None:
        self.kind = kind
        self._event = event
        self._position = position

    def at(self, position: str) -> Frame:
        """Return a frame with the same event and another position."""
        return Frame(self.kind, self._event, position)

    @cached_property
    def text(self) -> bytes:
        """The payload of a WebSocket text message."""
        head = b"" if self._position is None else b'"position":"%s",' % self._position.encode()
        return b'{%s"event":%s}' % (head, self._event)

    @cached_property
    def wire(self) -> bytes:
        """The bytes of an unmasked WebSocket frame with `text` (RFC 6455)."""
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
        """The bytes of a server-sent event; the JSON needs no escaping, because it has no line breaks."""
        head = b"" if self._position is None else b"id: %s\n" % self._position.encode()
        return b"%sevent: %s\ndata: %s\n\n" % (head, self.kind.encode(), self._event)


class FrameBatch:
    """Frames that are sent to each client in one write."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        self.frames = frames

    @cached_property
    def wire(self) -> bytes:
        """All frames as bytes for a WebSocket."""
        return b"".join(frame.wire for frame in self.frames)

    @cached_property
    def sse(self) -> bytes:
        """All frames as bytes of server-sent events."""
        return b"".join(frame.sse for frame in self.frames)


def encode_events(events: Iterable[FeedEvent]) -> FrameBatch:
    """Encode events of one job, with their positions, as a batch of frames."""
    return FrameBatch([event_frame(event, str(position)) for event, position in events])


def event_frame(event: Event, position: str | None = None) -> Frame:
    """Encode an event as a frame; `position` is the client's position after it."""
    return Frame(type_of(event), encode_event(event), position)


def type_of(event: Event) -> str:
    """Return the value of `type` in the JSON of an event."""
    return str(event.__struct_config__.tag)


def gateway_frame(kind: str, position: str | None = None, **fields: Any) -> Frame:
    """Create a frame of a type (`kind`) that only the gateway sends: snapshot, resumed, job or resync.

    `fields` are the other fields of the event; `position` is the client's position after it.
    """
    return Frame(kind, _encode({"type": kind, **fields}), position)


RESYNC: Final = FrameBatch([gateway_frame("resync")])
