"""TLS in front of a server without TLS, such as the embedded ones; bytes are passed on unchanged."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from typing import Final, Self
from urllib.parse import urlsplit

PIECE_BYTES: Final = 64 * 1024
SSL_REQUEST: Final = bytes.fromhex("0000000804d2162f")
"""The SSLRequest message, by which a client of Postgres requests TLS; the answer S accepts."""


class TlsProxy:
    """Listens on loopback with a server's TLS and passes on to the server at `url`; counts its handshakes.

    For Postgres it answers the client's SSLRequest before the TLS handshake, as a Postgres server does.
    """

    def __init__(self, url: str, context: ssl.SSLContext) -> None:
        parts = urlsplit(url)
        self._server = (parts.hostname or "127.0.0.1", parts.port or 0)
        self._asks_first = parts.scheme.startswith("postgres")
        self._context = context
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self.handshakes = 0
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(60)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()

    async def _listen(self) -> None:
        context = None if self._asks_first else self._context
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=context)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        # asyncio forgets a connection that was accepted just before `close()`: first accept no more.
        for listening in self._listener.sockets:
            self._loop.remove_reader(listening.fileno())
        await asyncio.sleep(0)
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for _ in range(3):
            await asyncio.sleep(0)  # lets the transports close their sockets

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            try:
                if not self._asks_first or await self._is_asked_for_tls(reader, writer):
                    await self._pass_on(reader, writer)
            finally:
                writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.handshakes += 1
        back_reader, back_writer = await asyncio.open_connection(*self._server)
        try:
            await asyncio.gather(_copy(reader, back_writer), _copy(back_reader, writer))
        finally:
            back_writer.transport.abort()

    async def _is_asked_for_tls(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if await reader.readexactly(len(SSL_REQUEST)) != SSL_REQUEST:
            return False
        writer.write(b"S")
        await writer.start_tls(self._context)
        return True


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(PIECE_BYTES):
        writer.write(data)
        await writer.drain()
    writer.close()
