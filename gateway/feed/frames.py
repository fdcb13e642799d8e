"""Events as bytes on the wire, each made once however many clients there are."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final

import msgspec

from trainwire.gateway.feed.merging import Said
from trainwire.schemas.events import encode_event

_FINAL_TEXT: Final = 0x81
"""First byte of an unfragmented text frame (RFC 6455, 5.2)."""

_encode = msgspec.json.Encoder().encode


class Frame:
    """One event, with the position of who has got it (None in the list of jobs, which has none)."""

    def __init__(self, kind: str, event: bytes, position: str | None = None) -> None:
        self.kind = kind
        self._event = event
        self._position = position

    def at(self, position: str) -> Frame:
        """Return the same event for somebody who is at another position."""
        return Frame(self.kind, self._event, position)

    @cached_property
    def text(self) -> bytes:
        """The message of a WebSocket."""
        head = b"" if self._position is None else b'"position":"%s",' % self._position.encode()
        return b'{%s"event":%s}' % (head, self._event)

    @cached_property
    def wire(self) -> bytes:
        """The same as a frame of RFC 6455, from server to client: not masked."""
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
        """The same as a server-sent event; JSON has no line breaks."""
        head = b"" if self._position is None else b"id: %s\n" % self._position.encode()
        return b"%sevent: %s\ndata: %s\n\n" % (head, self.kind.encode(), self._event)


class Bundle:
    """Frames that go to the same clients at the same time, in one write for each."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        self.frames = frames

    def at(self, position: str) -> Bundle:
        """Return the same events for somebody who is at another position."""
        return Bundle([frame.at(position) for frame in self.frames])

    @cached_property
    def wire(self) -> bytes:
        """All frames of a WebSocket."""
        return b"".join(frame.wire for frame in self.frames)

    @cached_property
    def sse(self) -> bytes:
        """All server-sent events."""
        return b"".join(frame.sse for frame in self.frames)


def bundle_of(said: Sequence[Said]) -> Bundle:
    """Return the frames of these events."""
    return Bundle([Frame(tag_of(one.event), encode_event(one.event), str(one.position)) for one in said])


def tag_of(event: msgspec.Struct) -> str:
    """Return the `type` that an event has as JSON."""
    return str(event.__struct_config__.tag)


def own_frame(kind: str, position: str | None = None, **fields: Any) -> Bundle:
    """Return a frame that only the gateway says: snapshot, resumed, job, resync."""
    return Bundle([Frame(kind, _encode({"type": kind, **fields}), position)])


RESYNC: Final = own_frame("resync")
