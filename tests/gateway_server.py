"""Gateways of this test process: the real application behind a real socket, in a thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import pytest
import requests
import uvicorn

from trainwire.gateway.app import create_app
from trainwire.gateway.feed.protocol import FrameProtocol
from trainwire.gateway.http.timeouts import Timeouts, http_protocol
from trainwire.gateway.settings import GatewaySettings, load_gateway_settings
from trainwire.stack.persisted_config import free_port

START_TIMEOUT_S = 60.0
HANDSHAKE_TIMEOUT_S = 10.0
PLENTY_PER_S = 1_000_000.0
FLOWER_URL = "http://127.0.0.1:5555"


class GatewayServer:
    """A gateway on a port of its own."""

    def __init__(self, settings: GatewaySettings, timeouts: Timeouts | None = None) -> None:
        self.settings = settings
        self.app = create_app(settings)
        self.http = requests.Session()
        self.http.trust_env = False
        port = free_port()
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._server = uvicorn.Server(
            uvicorn.Config(
                self.app,
                port=port,
                log_config=None,
                proxy_headers=False,
                http=http_protocol(self.app.state.telemetry.count_cut, timeouts),
                ws=FrameProtocol,
                ws_per_message_deflate=False,
                timeout_graceful_shutdown=1,
            )
        )
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Self:
        self._thread.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._server.started:
            assert time.monotonic() < deadline
            assert self._thread.is_alive()
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()
        self._server.should_exit = True
        self._thread.join(START_TIMEOUT_S)

    async def _serve(self) -> None:
        """Serve until the end; then wait until every connection is closed.

        `close()` of asyncio does nothing just before a TLS handshake begins: only the end of the handshake closes
        the connection, and a loop that ends before leaves its socket to the garbage collector.
        """
        await self._server.serve()
        sockets = asyncio.get_running_loop()._selector.get_map()  # type: ignore[attr-defined]
        deadline = time.monotonic() + HANDSHAKE_TIMEOUT_S
        while len(sockets) > 1 and time.monotonic() < deadline:  # one wakes the loop
            await asyncio.sleep(0.01)

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        """Send a request."""
        return self.http.request(method, self.url + path, timeout=60, **options)

    def get(self, path: str, status: int = 200, **options: Any) -> Any:
        """Return the document at a path."""
        answer = self.request("GET", path, **options)
        assert answer.status_code == status, answer.text
        return answer.json()

    def post(self, path: str, document: Any, status: int = 202, **options: Any) -> Any:
        """Send a document, return the answer's."""
        answer = self.request("POST", path, json=document, **options)
        assert answer.status_code == status, answer.text
        return answer.json()


def gateway_settings(database_url: str, redis_url: str, **others: Any) -> GatewaySettings:
    """Return settings for a gateway of the tests."""
    plenty: dict[str, Any] = {"gateway_requests_per_s": PLENTY_PER_S}
    return load_gateway_settings(database_url=database_url, redis_url=redis_url, **(plenty | others))


@pytest.fixture(scope="session")
def _gateway(database_url: str, redis_url: str) -> Iterator[GatewayServer]:
    with GatewayServer(gateway_settings(database_url, redis_url)) as server:
        yield server


@pytest.fixture
def gateway(_gateway: GatewayServer, resources: object) -> GatewayServer:  # noqa: ARG001 - empties the stores
    """A gateway without tokens on the empty test servers."""
    return _gateway


@pytest.fixture(scope="session")
def _guarded(database_url: str, redis_url: str) -> Iterator[GatewayServer]:
    settings = gateway_settings(database_url, redis_url, gateway_auth="on", gateway_flower_url=FLOWER_URL)
    with GatewayServer(settings) as server:
        yield server


@pytest.fixture
def guarded(_guarded: GatewayServer, resources: object) -> GatewayServer:  # noqa: ARG001 - empties the stores
    """A gateway that asks for tokens, on the empty test servers."""
    _guarded.http.cookies.clear()
    return _guarded
