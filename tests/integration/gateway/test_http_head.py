"""HEAD requests, as supervisors, proxies and `curl -I` send them."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import pytest

from tests.factories import Sender, drain, logs
from tests.gateway_server import GatewayServer
from trainwire.workers.resources import Resources

JOB = 77


@pytest.fixture
def told(gateway: GatewayServer, resources: Resources, sender: Sender) -> GatewayServer:
    """A gateway that knows one job."""
    sender.send(logs("a", "b"), job=JOB)
    drain(resources, job=JOB)
    return gateway


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/page/js/main.js", "/healthz", "/readyz", "/openapi.json", "/session"),
        *("/jobs", f"/jobs/{JOB}", f"/jobs/{JOB}/logs", f"/jobs/{JOB}/logs/download"),
        *(f"/jobs/{JOB}/metrics", "/jobs/1234", "/nothing", "/jobs?limit=0"),
    ],
)
def test_head_is_get_without_its_body(told: GatewayServer, path: str) -> None:
    """Status and headers equal those of GET, errors included, and the connection can be reused."""
    asked, told_of = told.request("HEAD", path), told.request("GET", path)
    assert (asked.status_code, asked.content) == (told_of.status_code, b"")
    for name in ("Content-Type", "Content-Length", "Content-Disposition", "Cache-Control"):
        assert asked.headers.get(name) == told_of.headers.get(name)


def test_no_byte_follows_a_head(told: GatewayServer) -> None:
    """After the headers of HEAD the next response follows on the wire, without a body between."""
    host = urlsplit(told.url)
    with socket.create_connection((str(host.hostname), int(host.port or 0)), timeout=20) as raw:
        for path, rest in (("/", ""), (f"/jobs/{JOB}", "Connection: close\r\n")):
            raw.sendall(f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\n{rest}\r\n".encode())
        answers = raw.makefile("rb").read()
    assert answers.count(b"HTTP/1.1 200 OK") == 2
    assert answers.endswith(b"\r\n\r\n")
    assert b"<" not in answers
    assert b"{" not in answers


@pytest.mark.parametrize("path", ["/jobs/events", f"/jobs/{JOB}/events"])
def test_a_stream_has_no_head(told: GatewayServer, path: str) -> None:
    """HEAD of an endless stream is refused."""
    answer = told.request("HEAD", path)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET")


def test_a_head_is_counted_as_one(told: GatewayServer) -> None:
    """HEAD is counted by its route."""
    told.request("HEAD", f"/jobs/{JOB}")
    counted = 'trainwire_gateway_requests_total{method="HEAD",route="/jobs/{job_id}",status="200"} '
    assert counted in told.request("GET", "/metrics").text
