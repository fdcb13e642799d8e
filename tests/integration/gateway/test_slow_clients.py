"""Clients that send or read slowly or not at all are disconnected, without an effect on other clients."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.factories import logs
from tests.gateway_server import GatewayServer, gateway_settings
from tests.integration.gateway.feed_clients import Trainer
from tests.processes import wait_until
from trainwire.gateway.http.timeouts import Timeouts
from trainwire.workers.resources import Resources

SHORT = Timeouts(head_s=1.0, body_s=1.0, body_bytes_per_s=1_000_000, stall_s=1.0)
PLENTY = Timeouts(head_s=3600.0, body_s=3600.0, stall_s=2.0)
DEADLINE_S = 60
BODY = json.dumps({"lines": ["x" * 60]}).encode()
HEAD = (
    f"POST /jobs/9/callback/logs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    f"Content-Length: {len(BODY)}\r\n"
).encode()


@pytest.fixture
def hasty(database_url: str, redis_url: str, resources: object) -> Iterator[GatewayServer]:  # noqa: ARG001 - empties the stores
    """A gateway with timeouts of one second."""
    with GatewayServer(gateway_settings(database_url, redis_url), SHORT) as server:
        yield server


@pytest.fixture
def patient(database_url: str, redis_url: str, resources: object) -> Iterator[GatewayServer]:  # noqa: ARG001 - empties the stores
    """A gateway with long timeouts for requests, and two seconds for clients that read nothing."""
    with GatewayServer(gateway_settings(database_url, redis_url), PLENTY) as server:
        yield server


def cuts(server: GatewayServer, reason: str) -> float:
    """Return how many connections have been ended for this reason."""
    families = text_string_to_metric_families(server.request("GET", "/metrics").text)
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == "trainwire_gateway_cut_connections_total" and sample.labels["reason"] == reason
    )


def drip(client: socket.socket, data: bytes) -> bytes:
    """Send a byte at intervals until the connection ends; return the response."""
    deadline = time.monotonic() + DEADLINE_S
    came = b""
    client.settimeout(0.1)
    for number in range(1_000_000):
        assert time.monotonic() < deadline, "the connection goes on for ever"
        try:
            client.send(data[number % len(data) :][:1])
            piece = client.recv(65536)
            came += piece
            if not piece:
                return came
        except TimeoutError:
            continue
        except OSError:
            return came
    raise AssertionError


@pytest.mark.parametrize(
    ("begin", "rest", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"a: b\r\n", "slow_head"),
        (HEAD + b"\r\n", BODY[:-1], "slow_body"),
    ],
    ids=["head", "body"],
)
def test_a_request_that_does_not_come_is_ended(
    hasty: GatewayServer, begin: bytes, rest: bytes, reason: str
) -> None:
    """A slow request is answered 408 and counted."""
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=DEADLINE_S) as client:
        client.sendall(begin)
        # A body's bytes are few enough for its end not to come before its time does.
        came = drip(client, rest if reason == "slow_head" else b" ")
    assert came.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert json.loads(came.partition(b"\r\n\r\n")[2])["type"] == "urn:trainwire:problem:too-slow"
    assert cuts(hasty, reason) == 1


def test_a_later_request_has_a_time_too(hasty: GatewayServer) -> None:
    """The timeout applies to later requests of a connection too."""
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=DEADLINE_S) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        while b"ok" not in client.recv(65536):
            pass
        client.sendall(b"GET /healthz HTTP/1.1\r\n")
        assert b"408" in drip(client, b"a: b\r\n")
    assert cuts(hasty, "slow_head") == 1


def test_a_silent_connection_is_closed(hasty: GatewayServer) -> None:
    """A connection without a byte is closed without a response."""
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=DEADLINE_S) as client:
        assert client.recv(1) == b""


def test_a_body_that_keeps_coming_may_take_its_time(database_url: str, redis_url: str, resources: object) -> None:
    """A body at the minimum rate or above is accepted, however long it takes."""
    assert resources
    pace = Timeouts(body_s=2.0, body_bytes_per_s=4)
    with (
        GatewayServer(gateway_settings(database_url, redis_url), pace) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S) as client,
    ):
        client.sendall(HEAD + b"\r\n")
        began = time.monotonic()
        for at in range(0, len(BODY), 4):
            client.sendall(BODY[at : at + 4])
            time.sleep(0.2)
        assert time.monotonic() - began > pace.body_s
        assert client.recv(65536).startswith(b"HTTP/1.1 202 ")
        assert cuts(server, "slow_body") == 0


def deaf(server: GatewayServer, path: str, *more: str) -> socket.socket:
    """Send a request without reading the response, with small buffers."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", server.port))
    client.sendall("\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *more]).encode() + b"\r\n\r\n")
    return client


UPGRADE = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
)
ANSWERS: dict[str, Callable[[int], tuple[str, ...]]] = {
    "sse": lambda job: (f"/jobs/{job}/events",),
    "websocket": lambda job: (f"/jobs/{job}/ws", *UPGRADE),
    "page of lines": lambda job: (f"/jobs/{job}/logs?limit=5000",),
    "download": lambda job: (f"/jobs/{job}/logs/download",),
}


@pytest.mark.parametrize("asked", ANSWERS.values(), ids=ANSWERS)
def test_a_client_that_never_reads_is_aborted(
    patient: GatewayServer, resources: Resources, asked: Callable[[int], tuple[str, ...]]
) -> None:
    """A connection whose client reads nothing is aborted and counted; others are not."""
    trainer = Trainer(resources, 2000)
    send_much(trainer)
    with deaf(patient, *asked(2000)) as client, deaf(patient, "/healthz") as quiet:
        send_much(trainer)
        wait_until(lambda: cuts(patient, "deaf") == 1, "the end of the deaf client", DEADLINE_S)
        assert read_all(client)
        quiet.settimeout(DEADLINE_S)
        assert b"200 OK" in quiet.recv(65536)
    assert cuts(patient, "deaf") == 1


def send_much(trainer: Trainer) -> None:
    """Send more than the socket buffers of both sides hold."""
    for _ in range(10):
        trainer.send(logs(*("x" * 50_000 for _ in range(50))))


def read_all(client: socket.socket) -> int:
    """Read until the end; return the number of bytes."""
    client.settimeout(DEADLINE_S)
    size = 0
    with suppress(ConnectionResetError):
        while piece := client.recv(1 << 20):
            size += len(piece)
    return size


def test_a_client_that_reads_slowly_is_not_aborted(patient: GatewayServer, resources: Resources) -> None:
    """A client that reads slowly is not disconnected, however long the response takes."""
    trainer = Trainer(resources, 2001)
    send_much(trainer)
    with deaf(patient, "/jobs/2001/logs/download") as client:
        client.settimeout(DEADLINE_S)
        until = time.monotonic() + 4 * PLENTY.stall_s
        while time.monotonic() < until:
            assert client.recv(40_000)
            time.sleep(0.05)
    assert cuts(patient, "deaf") == 0
