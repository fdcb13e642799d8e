"""Requests with an ambiguous end are refused and the connection is closed, to prevent request smuggling."""

from __future__ import annotations

import json
import socket

import pytest

from tests.gateway_server import GatewayServer

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
CHUNKS = b"4\r\n" + b'{"li' + b"\r\n0\r\n\r\n"
POST = b"POST /jobs/9/callback/logs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def exchange(server: GatewayServer, request: bytes) -> bytes:
    """Send a request followed by another; return all bytes until the connection ends."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(request + SMUGGLED)
        came = b""
        while piece := client.recv(65536):
            came += piece
    return came


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"transfer-encoding: Chunked\r\ncontent-length: 0\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding:\r\n chunked\r\n",
        b"Content-Length: 5\nTransfer-Encoding: chunked\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5, 6\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: -5\r\n",
        b"Content-Length: 0x5\r\n",
        b"Content-Length: 5_0\r\n",
        b"Content-Length: \xd9\xa5\r\n",
        b"Content-Length: \x0b5\r\n",
        b"Content-Length: 5 5\r\n",
        b"Content-Length:\r\n",
        b"Content-Length : 5\r\n",
        b"Content-Length: 99999999999999999999999\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: chunked, chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        b"Transfer-Encoding: \x0bchunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding\r\n : chunked\r\n",
        b"Content-Length: 5\r\nX: a\rTransfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\nX: a\x00Transfer-Encoding: chunked\r\n",
        b"Host: elsewhere\r\nContent-Length: 0\r\n",
    ],
)
def test_an_ambiguous_length_is_refused_and_the_connection_closed(gateway: GatewayServer, headers: bytes) -> None:
    """The answer is 400, and bytes after the request are not read."""
    head, _, body = exchange(gateway, POST + headers + b"\r\n" + CHUNKS).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"connection: close" in head.lower()
    assert json.loads(body)["type"] == "urn:trainwire:problem:not-http"


def test_http_1_0_has_no_transfer_encoding(gateway: GatewayServer) -> None:
    """HTTP/1.0 with Transfer-Encoding is refused (RFC 9112, 6.1)."""
    came = exchange(
        gateway, POST.replace(b"HTTP/1.1", b"HTTP/1.0") + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS
    )
    assert came.startswith(b"HTTP/1.1 400 ")
    assert b"HTTP/1.0 has no Transfer-Encoding" in came
    assert came.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 15\r\n",
        b"Content-Length: 15\r\nContent-Length: 15\r\n",
        b"Content-Length: 15, 15\r\n",
        b"Content-Length: \t15 \r\n",
        b"Content-Length:\r\n 15\r\n",
        b"Content-Length: 15\n",
    ],
)
def test_a_clear_length_is_taken(gateway: GatewayServer, headers: bytes) -> None:
    """Each unambiguous framing that RFC 9112 allows is accepted, and so is the next request."""
    came = exchange(gateway, POST + headers + b'\r\n{"lines":["x"]}')
    assert came.startswith(b"HTTP/1.1 202 ")
    assert came.count(b"HTTP/1.1 ") == 2
