"""Where the frames for one client go: bounded, so that one who does not read costs nobody else anything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from trainwire.gateway.feed.frames import RESYNC, Bundle
from trainwire.gateway.feed.protocol import FrameProtocol

MAX_WAITING_BYTES: Final = 1024 * 1024
"""A client that lets more than this wait, beyond what its socket takes, is too slow."""
ROOM_TIMEOUT_S: Final = 30.0
"""While it catches up a client is waited for, this long for each piece."""
RESYNC_CODE: Final = 4008


class MustComeAgain(Exception):  # noqa: N818 - never leaves the gateway
    """A client cannot be told more here: it did not read for too long, or its job is not watched any more."""


class Outlet(Protocol):
    """What a feed needs to know of a client."""

    def send(self, bundle: Bundle) -> bool:
        """Pass frames on without waiting; return False where the client is too slow."""

    async def drained(self) -> None:
        """Wait until there is room for more; raise `MustComeAgain` where that takes too long."""

    def resync(self) -> None:
        """Tell the client to come again, and end."""


class SocketOutlet:
    """Writes to the socket itself: two thousand clients are two thousand writes, not as many tasks."""

    def __init__(self, protocol: FrameProtocol, on_behind: Callable[[], None]) -> None:
        self._protocol = protocol
        self._on_behind = on_behind

    def send(self, bundle: Bundle) -> bool:
        """Write the frames, unless too much is waiting already."""
        if self._protocol.waiting_bytes > MAX_WAITING_BYTES:
            self._on_behind()
            return False
        self._protocol.write(bundle.wire)
        return True

    async def drained(self) -> None:
        """Wait until the socket has taken nearly all of it."""
        await _in_time(self._protocol.writable, self._on_behind)

    def resync(self) -> None:
        """Write the last frame and close; who does not even read that is cut off."""
        self._protocol.finish(RESYNC.wire, RESYNC_CODE, "too slow: connect again with your position")


class QueueOutlet:
    """Keeps frames until a task has sent them: for server-sent events, and WebSockets of other servers."""

    def __init__(self, on_behind: Callable[[], None]) -> None:
        self._on_behind = on_behind
        self._bundles: list[Bundle] = []
        self._waiting_bytes = 0
        self._has_some = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self.is_over = False
        """No frame follows those that are in the queue."""

    def send(self, bundle: Bundle) -> bool:
        """Queue the frames, unless too much is waiting already."""
        if self._waiting_bytes > MAX_WAITING_BYTES:
            self._on_behind()
            return False
        if not self.is_over:
            self._put(bundle)
        return True

    async def drained(self) -> None:
        """Wait until all is sent."""
        await _in_time(self._has_room, self._on_behind)

    def resync(self) -> None:
        """Forget what waits: the client begins from its position."""
        self._bundles.clear()
        self._waiting_bytes = 0
        self._put(RESYNC)
        self.end()

    def end(self) -> None:
        """Let the queue run out."""
        self.is_over = True
        self._has_some.set()

    async def next(self) -> list[Bundle]:
        """Wait for frames and return all there are; none after the last."""
        while not self._bundles and not self.is_over:
            self._has_some.clear()
            await self._has_some.wait()
        bundles, self._bundles = self._bundles, []
        self._waiting_bytes = 0
        self._has_room.set()
        return bundles

    def _put(self, bundle: Bundle) -> None:
        self._bundles.append(bundle)
        self._waiting_bytes += len(bundle.sse)
        self._has_room.clear()
        self._has_some.set()


async def _in_time(event: asyncio.Event, on_behind: Callable[[], None]) -> None:
    if event.is_set():
        return
    try:
        await asyncio.wait_for(event.wait(), ROOM_TIMEOUT_S)
    except TimeoutError as exc:
        on_behind()
        raise MustComeAgain from exc
