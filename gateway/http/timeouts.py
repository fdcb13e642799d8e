"""Timeouts of connections: for the head and the body of a request, and for a client that does not read.

uvicorn limits only the idle time between two requests. Here the head of a request has a timeout, the body has one
that grows with the bytes received (like Apache's RequestReadTimeout), and a connection whose client reads nothing
is aborted.
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

from trainwire.gateway.http.problems import Problem, problem, problem_response, shown

Cut = Literal["slow_head", "slow_body", "deaf", "behind"]
"""Reason for which the gateway ended a connection.

`slow_head` and `slow_body`: the request came too slowly; `deaf`: the client read nothing; `behind`: the client
read the live feed too slowly.
"""
STALL_CHECKS: Final = 6
"""Number of times that a connection is checked within the stall timeout."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Timeouts in seconds; `body_s` is extended by one second for each `body_bytes_per_s` bytes received."""

    head_s: float = 20.0
    body_s: float = 30.0
    body_bytes_per_s: int = 1024
    stall_s: float = 60.0


def http_protocol(on_cut: Callable[[Cut], None], timeouts: Timeouts | None = None) -> type[asyncio.Protocol]:
    """Return the protocol class for `uvicorn.run(..., http=...)`; by default with the timeouts of `Timeouts()`.

    Whenever a connection is closed because of a timeout, `on_cut` is called with the reason.
    """
    factory = partial(TimedProtocol, on_cut=on_cut, timeouts=timeouts or Timeouts())
    return cast("type[asyncio.Protocol]", factory)


class TimedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol with timeouts for requests and for clients that read nothing.

    The stall timeout also applies to WebSockets, because they continue on the same transport.
    """

    def __init__(self, *args: Any, on_cut: Callable[[Cut], None], timeouts: Timeouts, **more: Any) -> None:
        super().__init__(*args, **more)
        self.conn = self._parser = StrictConnection(h11.SERVER)
        self._on_cut = on_cut
        self._timeouts = timeouts
        self._awaited: Literal["head", "body"] | None = None
        self._since = 0.0
        self._received = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Add the stall timeout to the transport, and start the timeout of the first request."""
        on_stall = partial(self._on_cut, "deaf")
        watched = WatchedTransport(transport, self.loop, self._timeouts.stall_s, on_stall)
        super().connection_made(cast("asyncio.Transport", watched))
        self._update_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timeout of the request."""
        super().connection_lost(exc)
        self._cancel_timer()

    def data_received(self, data: bytes) -> None:
        """Process received bytes; start or cancel the timeout of the request."""
        self._received += len(data)
        super().data_received(data)
        self._update_timer()

    def _update_timer(self) -> None:
        missing = self._missing_part()
        if missing == self._awaited:
            return
        self._cancel_timer()
        self._awaited = missing
        if missing is not None:
            self._since, self._received = self.loop.time(), 0
            self._timer = self.loop.call_later(self._timeout_s(), self._check)

    def _missing_part(self) -> Literal["head", "body"] | None:
        """Return the part of the request, head or body, that has not arrived completely.

        Returns None if the server is not waiting for data of a request.
        """
        if self.transport.is_closing() or self.transport.get_protocol() is not self:
            return None
        if self.conn.their_state is h11.IDLE:
            return "head"
        return "body" if self.conn.their_state is h11.SEND_BODY else None

    def _timeout_s(self) -> float:
        if self._awaited == "head":
            return self._timeouts.head_s
        return self._timeouts.body_s + self._received / self._timeouts.body_bytes_per_s

    def _check(self) -> None:
        if self.flow.read_paused:  # the application has not read the body yet, so the client may not send
            self._since = self.loop.time()
        left_s = self._since + self._timeout_s() - self.loop.time()
        if left_s > 0:
            self._timer = self.loop.call_later(left_s, self._check)
            return
        self._on_cut("slow_head" if self._awaited == "head" else "slow_body")
        if self._awaited == "body" or self._received:  # browsers open spare connections and send nothing
            self._refuse(_TOO_SLOW)
        self.transport.close()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - `refusal` has a better text
        """Respond to invalid HTTP with a problem document, and close: the end of the request is unknown."""
        self._refuse(self._parser.refusal)
        self.transport.close()

    def _refuse(self, response: bytes) -> None:
        """Write `response`, the bytes of a complete response, unless another response has begun."""
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(response)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class StrictConnection(h11.Connection):
    """h11's parser, which also rejects requests whose length a proxy may interpret differently (smuggling).

    RFC 9112, 6.1 and 6.3: Content-Length together with Transfer-Encoding, and Transfer-Encoding in HTTP/1.0, are
    invalid framing. h11 itself rejects different or invalid lengths, codings other than chunked, and two Host
    headers.
    """

    refusal = b""
    """Bytes of the HTTP response to the last rejected request."""

    def next_event(self) -> Any:
        """Return h11's next event; raise `RemoteProtocolError` for an invalid request."""
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                _check_framing(event)
        except h11.RemoteProtocolError as exc:
            self.refusal = _closing_response(
                problem(400, "not-http", "The request is not valid HTTP", shown(str(exc)))
            )
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
    """Transport wrapper that aborts the connection if its client reads no waiting data for `stall_s` seconds."""

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        stall_s: float,
        on_stall: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._stall_s = stall_s
        self._on_stall = on_stall
        self._written = 0
        self._received = 0
        self._progress_at = 0.0
        self._is_watching = False
        self.get_write_buffer_size = transport.get_write_buffer_size
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write to the wrapped transport; start the stall timeout if data is left in its buffer."""
        self._transport.write(data)
        self._written += len(data)
        if not self._is_watching and self.get_write_buffer_size():
            self._is_watching = True
            self._received, self._progress_at = self._received_bytes(), self._loop.time()
            self._check_later()

    def _check(self) -> None:
        if not self.get_write_buffer_size():
            self._is_watching = False
            return
        received = self._received_bytes()
        if received != self._received:
            self._received, self._progress_at = received, self._loop.time()
        if self._loop.time() - self._progress_at < self._stall_s:
            self._check_later()
            return
        self._is_watching = False
        self._on_stall()
        self._transport.abort()

    def _received_bytes(self) -> int:
        """Return the number of bytes that the client's operating system has acknowledged."""
        unsent = unsent_bytes(self._transport.get_extra_info("socket"))
        return self._written - self.get_write_buffer_size() - unsent

    def _check_later(self) -> None:
        self._loop.call_later(self._stall_s / STALL_CHECKS, self._check)


def unsent_bytes(sock: socket.socket) -> int:
    """Return the number of unacknowledged bytes in the send buffer; 0 if the system does not report it.

    Linux: SIOCOUTQ (tcp(7)). Without this number, a slow client seems stalled until it has read a good part of the
    send buffer, which may hold megabytes.
    """
    try:
        (unsent,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))
    except OSError:
        return 0
    return int(unsent)


def _closing_response(document: Problem) -> bytes:
    """Return the bytes of an HTTP/1.1 response with a problem document and `Connection: close`."""
    response = problem_response(document)
    headers = [(b"connection", b"close"), *response.raw_headers]
    phrase = HTTPStatus(document.status).phrase.encode()
    lines = [b"HTTP/1.1 %d %s" % (document.status, phrase), *(b": ".join(header) for header in headers)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + bytes(response.body)


_TOO_SLOW: Final = _closing_response(
    problem(
        408,
        "too-slow",
        "The request is too slow",
        "the request did not come in time: send it in one go, or in smaller pieces",
    )
)
