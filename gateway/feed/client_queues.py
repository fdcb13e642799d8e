"""Bounded queues of frames, one per client: a client that does not read delays no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from trainwire.gateway.feed.frames import RESYNC, FrameBatch
from trainwire.gateway.feed.protocol import FrameProtocol

MAX_WAITING_BYTES: Final = 1024 * 1024
"""A client with more bytes in its queue is too slow; the buffers of its operating system come on top."""
ROOM_TIMEOUT_S: Final = 30.0
"""Seconds that a client has to read each batch of the events that it missed."""
RESYNC_CODE: Final = 4008
RESYNC_REASON: Final = "too slow: connect again with your position"


class MustReconnect(Exception):  # noqa: N818 - never leaves the gateway
    """The client must reconnect: it was too slow, or the gateway does not follow its job any more."""


class ClientQueue(Protocol):
    """Interface of the queues by which the feed sends frames to one client."""

    def send(self, batch: FrameBatch) -> bool:
        """Queue a batch of frames; return False if the client is too slow."""

    async def wait_for_room(self) -> None:
        """Wait until the queue is nearly empty; raise `MustReconnect` after `ROOM_TIMEOUT_S`."""

    def resync(self) -> None:
        """Send a `resync` frame as the last one, and close the connection; the client should reconnect."""


class SocketQueue:
    """A queue that is the write buffer of a WebSocket's socket, so that thousands of clients need no task each."""

    def __init__(self, protocol: FrameProtocol, on_behind: Callable[[], None]) -> None:
        self._protocol = protocol
        self._on_behind = on_behind

    def send(self, batch: FrameBatch) -> bool:
        """Write the frames to the socket; return False if too many bytes are waiting already."""
        if self._protocol.waiting_bytes > MAX_WAITING_BYTES:
            self._on_behind()
            return False
        self._protocol.write(batch.wire)
        return True

    async def wait_for_room(self) -> None:
        """Wait until the write buffer has drained; raise `MustReconnect` after `ROOM_TIMEOUT_S`."""
        await _wait_for_room(self._protocol.writable, self._on_behind)

    def resync(self) -> None:
        """Write a `resync` frame and close; a client that does not read it is disconnected."""
        self._protocol.finish(RESYNC.wire, RESYNC_CODE, RESYNC_REASON)


class MemoryQueue:
    """A queue in memory, emptied by a task of the client.

    Used for server-sent events, and for WebSockets without `FrameProtocol`.
    """

    def __init__(self, on_behind: Callable[[], None]) -> None:
        self._on_behind = on_behind
        self._batches: list[FrameBatch] = []
        self._waiting_bytes = 0
        self._is_closed = False
        self._has_frames = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()

    def send(self, batch: FrameBatch) -> bool:
        """Queue the frames, unless the queue is closed; return False if too many bytes are waiting already."""
        if self._waiting_bytes > MAX_WAITING_BYTES:
            self._on_behind()
            return False
        if not self._is_closed:
            self._put(batch)
        return True

    async def wait_for_room(self) -> None:
        """Wait until the queue is empty; raise `MustReconnect` after `ROOM_TIMEOUT_S`."""
        await _wait_for_room(self._has_room, self._on_behind)

    def resync(self) -> None:
        """Replace the queued frames with `resync`, and close the queue; the client resumes from its position."""
        self._batches.clear()
        self._waiting_bytes = 0
        self._put(RESYNC)
        self._is_closed = True

    async def next(self) -> list[FrameBatch]:
        """Wait for frames and return all queued batches; an empty list once the queue is closed and empty."""
        while not self._batches and not self._is_closed:
            self._has_frames.clear()
            await self._has_frames.wait()
        batches, self._batches = self._batches, []
        self._waiting_bytes = 0
        self._has_room.set()
        return batches

    def _put(self, batch: FrameBatch) -> None:
        self._batches.append(batch)
        self._waiting_bytes += len(batch.sse)
        self._has_room.clear()
        self._has_frames.set()


async def _wait_for_room(has_room: asyncio.Event, on_behind: Callable[[], None]) -> None:
    if has_room.is_set():
        return
    try:
        await asyncio.wait_for(has_room.wait(), ROOM_TIMEOUT_S)
    except TimeoutError as exc:
        on_behind()
        raise MustReconnect from exc
