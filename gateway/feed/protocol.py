"""uvicorn's WebSocket protocol, extended to write encoded frames: `uvicorn.run(..., ws=FrameProtocol)`.

The ASGI interface would encode each message again for each client. The feed sends the same bytes to all clients.
"""

from __future__ import annotations

import logging
from typing import Any, Final, cast

from starlette.websockets import WebSocket
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

EXTENSION: Final = "trainwire.frames"
CLOSE_TIMEOUT_S: Final = 10.0

_warnings = logging.getLogger("trainwire.gateway.feed.protocol")
_warnings.setLevel(logging.WARNING)


class FrameProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol with a method that writes encoded frames.

    Routes find it as the ASGI extension `trainwire.frames`. It logs only warnings, so that client addresses are
    not logged.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = _warnings

    def handle_connect(self, event: Request) -> None:
        """Begin a connection as uvicorn does, and add this protocol to the ASGI extensions."""
        super().handle_connect(event)
        if not self.close_sent:
            cast("dict[str, object]", self.scope["extensions"])[EXTENSION] = self

    @property
    def waiting_bytes(self) -> int:
        """Number of bytes in the write buffer, which the operating system has not accepted yet."""
        return self.transport.get_write_buffer_size()

    def write(self, frames: bytes) -> None:
        """Write encoded frames; does nothing on a closing connection."""
        if not (self.close_sent or self.transport.is_closing()):
            self.transport.write(frames)

    def keepalive_timeout(self) -> None:
        """Close a connection whose client sent no pong; abort it after CLOSE_TIMEOUT_S without an answer."""
        super().keepalive_timeout()
        if self.close_sent and self.close_timer is None:
            self.close_timer = self.loop.call_later(CLOSE_TIMEOUT_S, self.transport.abort)

    def finish(self, frames: bytes, code: int, reason: str) -> None:
        """Write the last frames, and a close frame with this code and reason.

        The connection is aborted if the client does not close it within CLOSE_TIMEOUT_S.
        """
        if self.close_sent or self.transport.is_closing():
            return
        self.stop_keepalive()
        self.conn.send_close(code, reason)
        self.transport.write(frames + b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.close_timer = self.loop.call_later(CLOSE_TIMEOUT_S, self.transport.abort)


def frame_protocol(websocket: WebSocket) -> FrameProtocol | None:
    """Return the `FrameProtocol` of a connection; None if another server or protocol class serves it."""
    found = websocket.scope.get("extensions", {}).get(EXTENSION)
    return found if isinstance(found, FrameProtocol) else None
