"""The feed on an ASGI server without FrameProtocol."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import uvicorn

from tests.factories import logs
from tests.integration.gateway.feed_clients import GatewayAddress, Trainer, WebSocketClient
from tests.processes import wait_until
from trainwire.gateway.app import create_app
from trainwire.gateway.settings import load_gateway_settings
from trainwire.stack.persisted_config import free_port


@pytest.fixture
def plain_gateway(database_url: str, redis_url: str) -> Iterator[GatewayAddress]:
    """A gateway in a thread, on uvicorn's own WebSocket class."""
    address = GatewayAddress(free_port())
    app = create_app(load_gateway_settings(database_url=database_url, redis_url=redis_url))
    server = uvicorn.Server(
        uvicorn.Config(
            app, port=address.port, ws="websockets-sansio", log_config=None, timeout_graceful_shutdown=1
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started, "a server")
    yield address
    server.should_exit = True
    thread.join(30)


def test_any_server_carries_the_feed(plain_gateway: GatewayAddress, trainer: Trainer) -> None:
    """Without FrameProtocol the same frames arrive, and a client resumes from its position."""
    trainer.send(logs("one"))
    with WebSocketClient(plain_gateway, f"/jobs/{trainer.job_id}/ws") as client:
        assert client.take()["type"] == "snapshot"
        trainer.send(logs("two"))
        client.until("logs", 2)
        client.connection.close()
        trainer.send(logs("three"))
        client.connect()
        client.until("logs", 3)
        assert client.texts == ["one", "two", "three"]
