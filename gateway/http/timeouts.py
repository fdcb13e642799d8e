"""What a connection may keep us waiting for: a request that does not come, an answer that is not taken.

uvicorn bounds only the pause between two requests. Here the head of a request has a time, its body a time that
grows with what has come (as Apache's RequestReadTimeout), and a socket that takes nothing is cut off in the end.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, Final, Literal, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from trainwire.gateway.http.problems import Problem, answer, problem, shown

Cut = Literal["slow_head", "slow_body", "deaf", "behind"]
"""Why a connection was ended: its request came too slowly, its answer was not taken, it fell behind the feed."""
LOOKS: Final = 6
"""How many times a deaf socket is looked at before it is cut off."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long what is waited for; a body has one second more for each `body_bytes_per_s` that have come."""

    head_s: float = 20.0
    body_s: float = 30.0
    body_bytes_per_s: int = 1024
    deaf_s: float = 60.0


def http_protocol(on_cut: Callable[[Cut], None], patience: Patience | None = None) -> type[asyncio.Protocol]:
    """Return what uvicorn makes a connection with: `uvicorn.run(..., http=...)`."""
    made = partial(PatientProtocol, on_cut=on_cut, patience=patience or Patience())
    return cast("type[asyncio.Protocol]", made)


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 whose requests must come in time; a WebSocket keeps the watched transport."""

    def __init__(self, *args: Any, on_cut: Callable[[Cut], None], patience: Patience, **more: Any) -> None:
        super().__init__(*args, **more)
        self.conn = self._parser = StrictConnection(h11.SERVER)
        self._on_cut = on_cut
        self._patience = patience
        self._waits_for: Literal["head", "body"] | None = None
        self._since = 0.0
        self._received = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        on_deaf = partial(self._on_cut, "deaf")
        watched = WatchedTransport(transport, self.loop, self._patience.deaf_s, on_deaf)
        super().connection_made(cast("asyncio.Transport", watched))
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the time limit."""
        super().connection_lost(exc)
        self._stop()

    def data_received(self, data: bytes) -> None:
        """Pass the bytes on; start or stop the time limit of the request."""
        self._received += len(data)
        super().data_received(data)
        self._wait()

    def _wait(self) -> None:
        missing = self._missing()
        if missing == self._waits_for:
            return
        self._stop()
        self._waits_for = missing
        if missing is not None:
            self._since, self._received = self.loop.time(), 0
            self._timer = self.loop.call_later(self._allowed_s(), self._look)

    def _missing(self) -> Literal["head", "body"] | None:
        """Return what the client has not sent all of."""
        if self.transport.is_closing() or self.transport.get_protocol() is not self:
            return None
        if self.conn.their_state is h11.IDLE:
            return "head"
        return "body" if self.conn.their_state is h11.SEND_BODY else None

    def _allowed_s(self) -> float:
        if self._waits_for == "head":
            return self._patience.head_s
        return self._patience.body_s + self._received / self._patience.body_bytes_per_s

    def _look(self) -> None:
        if self.flow.read_paused:  # it is we who do not take it
            self._since = self.loop.time()
        left_s = self._since + self._allowed_s() - self.loop.time()
        if left_s > 0:
            self._timer = self.loop.call_later(left_s, self._look)
            return
        self._on_cut("slow_head" if self._waits_for == "head" else "slow_body")
        if self._waits_for == "body" or self._received:  # a browser opens spare connections and says nothing
            self._refuse(_TOO_SLOW)
        self.transport.close()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the same sentence for every request
        """Answer a request that is not HTTP with a problem document, and close: its end is not known."""
        self._refuse(self._parser.refusal)
        self.transport.close()

    def _refuse(self, response: bytes) -> None:
        """Write a whole response, unless another is under way."""
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(response)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class StrictConnection(h11.Connection):
    """h11's parser that refuses a request whose length a proxy in front may see otherwise (request smuggling).

    RFC 9112, 6.1 and 6.3: Content-Length beside Transfer-Encoding, and Transfer-Encoding in HTTP/1.0, are faulty
    framing. h11 itself refuses lengths that differ or are no digits, codings other than chunked, two Hosts.
    """

    refusal = b""
    """The response to the request that was refused last."""

    def next_event(self) -> Any:
        """Return the next event; raise h11's `RemoteProtocolError` for a request that is refused."""
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                _check_framing(event)
        except h11.RemoteProtocolError as exc:
            self.refusal = _closing(problem(400, "not-http", "This is not a valid HTTP request", shown(str(exc))))
            raise
        return event


def _check_framing(request: h11.Request) -> None:
    names = {name for name, _ in request.headers}
    if b"transfer-encoding" not in names:
        return
    if b"content-length" in names:
        raise h11.RemoteProtocolError("it has both Content-Length and Transfer-Encoding: send one of them")
    if request.http_version < b"1.1":
        raise h11.RemoteProtocolError("HTTP/1.0 has no Transfer-Encoding: send Content-Length, or use HTTP/1.1")


class WatchedTransport:
    """A transport that is cut off when its socket takes nothing for `deaf_s` seconds while something waits."""

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        deaf_s: float,
        on_deaf: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._deaf_s = deaf_s
        self._on_deaf = on_deaf
        self._written = 0
        self._taken = 0
        self._taken_at = 0.0
        self._is_watching = False
        self.get_write_buffer_size = transport.get_write_buffer_size
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write as the transport does; watch what does not leave at once."""
        self._transport.write(data)
        self._written += len(data)
        if not self._is_watching and self.get_write_buffer_size():
            self._is_watching = True
            self._taken, self._taken_at = self._taken_bytes(), self._loop.time()
            self._look_later()

    def _look(self) -> None:
        if not self.get_write_buffer_size():
            self._is_watching = False
            return
        taken = self._taken_bytes()
        if taken != self._taken:
            self._taken, self._taken_at = taken, self._loop.time()
        if self._loop.time() - self._taken_at < self._deaf_s:
            self._look_later()
            return
        self._is_watching = False
        self._on_deaf()
        self._transport.abort()

    def _taken_bytes(self) -> int:
        """Return how much the other side's system has taken."""
        return (
            self._written - self.get_write_buffer_size() - unsent_bytes(self._transport.get_extra_info("socket"))
        )

    def _look_later(self) -> None:
        self._loop.call_later(self._deaf_s / LOOKS, self._look)


def unsent_bytes(sock: socket.socket) -> int:
    """Return what the system holds of a socket that the other side has not taken; 0 where it does not say.

    Linux: SIOCOUTQ (tcp(7)). Without it a slow client seems to take nothing for as long as it takes to empty a
    good part of the system's buffer, which may hold megabytes.
    """
    try:
        (unsent,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))
    except OSError:
        return 0
    return int(unsent)


def _closing(said: Problem) -> bytes:
    """Return a whole response that carries a problem and ends its connection."""
    response = answer(said)
    headers = [(b"connection", b"close"), *response.raw_headers]
    phrase = HTTPStatus(said.status).phrase.encode()
    lines = [b"HTTP/1.1 %d %s" % (said.status, phrase), *(b": ".join(header) for header in headers)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + bytes(response.body)


_TOO_SLOW: Final = _closing(
    problem(
        408,
        "too-slow",
        "The request is too slow",
        "the request did not come in time: send it in one go, or in smaller pieces",
    )
)
