"""uvicorn's WebSocket, with a door for frames that are encoded already: `uvicorn.run(..., ws=FrameProtocol)`.

ASGI sends a message by a coroutine that frames it anew for each client. The feed has the same
bytes for all of them.
"""

from __future__ import annotations

import logging
from typing import Any, Final, cast

from starlette.websockets import WebSocket
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

EXTENSION: Final = "trainwire.frames"
CLOSE_TIMEOUT_S: Final = 10.0

_failures = logging.getLogger("trainwire.gateway.feed.protocol")
_failures.setLevel(logging.WARNING)


class FrameProtocol(WebSocketsSansIOProtocol):
    """Puts itself into the scope, as the extension `trainwire.frames`; says to no log who connects to what."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = _failures

    def handle_connect(self, event: Request) -> None:
        """Begin a connection as uvicorn does."""
        super().handle_connect(event)
        if not self.close_sent:
            cast("dict[str, object]", self.scope["extensions"])[EXTENSION] = self

    @property
    def waiting_bytes(self) -> int:
        """What the socket has not taken yet."""
        return self.transport.get_write_buffer_size()

    def write(self, frames: bytes) -> None:
        """Write whole frames; nothing where the connection is ending."""
        if not (self.close_sent or self.transport.is_closing()):
            self.transport.write(frames)

    def keepalive_timeout(self) -> None:
        """Close a connection that sent no pong; abort it if the close frame is not answered either."""
        super().keepalive_timeout()
        if self.close_sent and self.close_timer is None:
            self.close_timer = self.loop.call_later(CLOSE_TIMEOUT_S, self.transport.abort)

    def finish(self, frames: bytes, code: int, reason: str) -> None:
        """Write the last frames and close; without an answer in time the connection is cut, whatever waits."""
        if self.close_sent or self.transport.is_closing():
            return
        self.stop_keepalive()
        self.conn.send_close(code, reason)
        self.transport.write(frames + b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.close_timer = self.loop.call_later(CLOSE_TIMEOUT_S, self.transport.abort)


def frame_protocol(websocket: WebSocket) -> FrameProtocol | None:
    """Return what serves this connection; None where another server or class does."""
    found = websocket.scope.get("extensions", {}).get(EXTENSION)
    return found if isinstance(found, FrameProtocol) else None
