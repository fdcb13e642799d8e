"""A TCP proxy on loopback that a test can slow down, freeze, cut and restore."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Final, Self
from urllib.parse import urlsplit

PIECE_BYTES: Final = 64 * 1024


class TcpProxy:
    """Passes connections on to a server at `url`, with one thread per direction; all threads end with it."""

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: set[socket.socket] = set()
        self._is_closed = False
        self.is_cut = False
        self._flows = threading.Event()
        self._flows.set()
        self.cut_after_bytes: int | None = None
        self.passed_bytes = 0
        self.bytes_per_s: float | None = None

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        self.thaw()

    def cut(self) -> None:
        """Break every connection; new ones are refused by closing them until `mend`."""
        self.is_cut = True
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Let new connections through."""
        self.is_cut = False

    def freeze(self) -> None:
        """Pass no more bytes on until `thaw`: connections stay open, as those of a stopped process."""
        self._flows.clear()

    def thaw(self) -> None:
        """Pass the waiting bytes on."""
        self._flows.set()

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.is_cut:
                client.close()
                continue
            server = socket.create_connection(self._server)
            self._open |= {client, server}
            for source, target, counts in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pass_on, args=(source, target, counts), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE_BYTES):
                if counts:
                    self._count(len(data))
                self._flows.wait()
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        source.close()
        self._open.discard(source)

    def _count(self, size_bytes: int) -> None:
        self.passed_bytes += size_bytes
        if self.bytes_per_s is not None:
            time.sleep(size_bytes / self.bytes_per_s)
        if self.cut_after_bytes is not None and self.passed_bytes >= self.cut_after_bytes:
            self.cut_after_bytes = None
            self.cut()


@contextlib.contextmanager
def proxied(url: str) -> Iterator[tuple[TcpProxy, str]]:
    """Yield a proxy before the server at `url`, and the URL that leads through it."""
    server = urlsplit(url).netloc.rpartition("@")[2]
    with TcpProxy(server) as proxy:
        yield proxy, url.replace(server, urlsplit(proxy.url).netloc)
