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
def known_job(gateway: GatewayServer, resources: Resources, sender: Sender) -> GatewayServer:
    """A gateway with one job."""
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
def test_head_is_get_without_its_body(known_job: GatewayServer, path: str) -> None:
    """Status and headers equal those of GET, errors included, and the connection can be reused."""
    head, full = known_job.request("HEAD", path), known_job.request("GET", path)
    assert (head.status_code, head.content) == (full.status_code, b"")
    for name in ("Content-Type", "Content-Length", "Content-Disposition", "Cache-Control"):
        assert head.headers.get(name) == full.headers.get(name)


def test_no_byte_follows_a_head(known_job: GatewayServer) -> None:
    """After the headers of HEAD the next response follows on the wire, without a body between."""
    host = urlsplit(known_job.url)
    with socket.create_connection((str(host.hostname), int(host.port or 0)), timeout=20) as raw:
        for path, rest in (("/", ""), (f"/jobs/{JOB}", "Connection: close\r\n")):
            raw.sendall(f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\n{rest}\r\n".encode())
        answers = raw.makefile("rb").read()
    assert answers.count(b"HTTP/1.1 200 OK") == 2
    assert answers.endswith(b"\r\n\r\n")
    assert b"<" not in answers
    assert b"{" not in answers


@pytest.mark.parametrize("path", ["/jobs/events", f"/jobs/{JOB}/events"])
def test_a_stream_has_no_head(known_job: GatewayServer, path: str) -> None:
    """HEAD of an endless stream is refused."""
    answer = known_job.request("HEAD", path)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET")


def test_a_head_is_counted_as_one(known_job: GatewayServer) -> None:
    """HEAD is counted by its route."""
    known_job.request("HEAD", f"/jobs/{JOB}")
    counted = 'trainwire_gateway_requests_total{method="HEAD",route="/jobs/{job_id}",status="200"} '
    assert counted in known_job.request("GET", "/metrics").text
