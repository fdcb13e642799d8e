"""Requests whose header does not end, against the real process."""

from __future__ import annotations

import socket

import pytest
import requests

from tests.integration.gateway.feed_clients import GatewayProcess

PIECE = b"x" * 1000
ENOUGH_PIECES = 20_000


def send_all(client: socket.socket, piece: bytes) -> None:
    """Send 20 MB."""
    for _ in range(ENOUGH_PIECES):
        client.sendall(piece)


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (b"GET /", PIECE),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nlong: ", PIECE),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"many: " + PIECE + b"\r\n"),
        (
            b"POST /session HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n",
            b"trailer: " + PIECE + b"\r\n",
        ),
    ],
    ids=["url", "header", "headers", "trailers"],
)
def test_a_head_without_end_is_refused(feed_gateway: GatewayProcess, begin: bytes, piece: bytes) -> None:
    """A head without an end is refused before megabytes of it are buffered."""
    with socket.create_connection(("127.0.0.1", feed_gateway.port), timeout=60) as client:
        client.sendall(begin)
        with pytest.raises(ConnectionError):
            send_all(client, piece)


def test_a_long_body_is_no_head(feed_gateway: GatewayProcess) -> None:
    """The limit for heads does not apply to bodies, whole or in chunks."""
    body = b'{"lines": ["' + b"x" * 1_000_000 + b'"]}'
    for sent in (body, (body[at : at + 1000] for at in range(0, len(body), 1000))):
        answer = requests.post(
            f"{feed_gateway.url}/jobs/9/callback/logs",
            data=sent,
            headers={"Content-Type": "application/json"},
            proxies={"http": ""},
            timeout=60,
        )
        assert answer.status_code == 202, answer.text
