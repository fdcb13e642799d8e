"""Hostile requests, limits and unavailable stores are answered with a problem that has the cause, never 500."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from tests.factories import Sender, checkpoint, drain
from tests.gateway_server import GatewayServer, gateway_settings
from trainwire.gateway.http.problems import Problem
from trainwire.gateway.http.request_limits import RateLimit
from trainwire.schemas.prometheus_metrics import GATEWAY_METRICS
from trainwire.workers.resources import Resources

NO_SERVER = "127.0.0.1:1"
THREADS = 40
"""The number of AnyIO's worker threads."""
_jobs = count(8_000)


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/jobs/0", "job_id"),
        ("/jobs/9223372036854775808", "job_id"),
        ("/jobs/-1/logs", "job_id"),
        ("/jobs/1e3", "job_id"),
        ("/jobs/%00", "job_id"),
        ("/jobs?limit=1000000", "limit"),
        ("/jobs?status=odd", "status.0"),
        ("/jobs?name=%00", "name"),
        (f"/jobs?name={'x' * 1001}", "name"),
        ("/jobs?cursor=MjAyNg", "cursor"),
        ("/jobs?cursor=%ff%00", "cursor"),
        ("/jobs/1/logs?search=a%00b", "search"),
        ("/jobs/1/logs?level=%00", "level"),
        ("/jobs/1/logs?after=99999999999999999999", "after"),
        ("/jobs/1/logs?after=1&before=2", "after, before, at"),
        ("/jobs/1/logs?at=yesterday", "at"),
        ("/jobs/1/logs?rank=2147483648", "rank"),
        ("/jobs/1/metrics?names=%00", "names.0"),
        ("/jobs/1/metrics?points=1", "points"),
        ("/jobs/compare?ids=1,two", "ids"),
        ("/jobs/compare?ids=,", "ids"),
        ("/checkpoints/1-x/url", "seq"),
    ],
)
def test_a_wrong_value_is_named(gateway: GatewayServer, path: str, field: str) -> None:
    """The error has the field, its value and the remedy; values that Postgres cannot store are not sent to it."""
    answer = gateway.request("GET", path)
    assert (answer.status_code, answer.headers["Content-Type"]) == (422, "application/problem+json")
    answered = msgspec.json.decode(answer.content, type=Problem)
    assert [error.field for error in answered.errors] == [field]
    assert field in answered.detail


@pytest.mark.parametrize(
    "path", ["/jobs?name=%ff%fe", "/jobs?name=%ed%a0%80", "/jobs?name=\U0001f4a5", "/jobs?x=1"]
)
def test_odd_text_finds_nothing(gateway: GatewayServer, path: str) -> None:
    """Broken UTF-8 and unknown parameters are no errors."""
    assert gateway.get(path)["next"] is None


def test_raw_bytes_are_answered(gateway: GatewayServer) -> None:
    """A request line with bytes that are no ASCII gets an answer below 500, or none."""
    host = urlsplit(gateway.url)
    with socket.create_connection((str(host.hostname), int(host.port or 0)), timeout=20) as raw:
        raw.sendall(b"GET /jobs?name=\xff\xfe HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        status = raw.makefile("rb").readline()
    assert not status or status.split()[1] < b"500"
    assert gateway.get("/healthz") == {"status": "ok"}


def test_unknown_paths_and_methods_are_problems(gateway: GatewayServer) -> None:
    """Unknown paths and methods are answered with a problem, which names the allowed methods."""
    assert gateway.get("/nothing", status=404)["type"] == "urn:trainwire:problem:http"
    answer = gateway.request("PUT", "/jobs")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD")


def test_every_answer_has_the_security_headers(gateway: GatewayServer) -> None:
    """All responses have the security headers, errors included."""
    for path in ("/jobs", "/nothing"):
        headers = gateway.request("GET", path).headers
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self';")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Cache-Control"] == "no-store"
        assert "Access-Control-Allow-Origin" not in headers


def test_a_body_may_only_be_so_large(database_url: str, redis_url: str) -> None:
    """A body above the limit is refused, with or without a Content-Length; one below it is accepted."""
    settings = gateway_settings(database_url, redis_url, gateway_max_body_bytes=2048)
    body = json.dumps({"lines": ["x" * 3000]}).encode()
    with GatewayServer(settings) as server:
        for sent in (body, iter([body])):
            answer = server.request("POST", "/jobs/1/callback/logs", data=sent)
            assert answer.status_code == 413
            assert "GATEWAY_MAX_BODY_BYTES" in answer.json()["detail"]
        small = iter([b'{"lines": ', b'["a"]}'])
        headers = {"Content-Type": "application/json"}
        assert server.request("POST", "/jobs/1/callback/logs", data=small, headers=headers).status_code == 202


def test_a_client_may_only_ask_so_often(database_url: str, redis_url: str) -> None:
    """A client above the rate gets 429 with Retry-After."""
    with GatewayServer(gateway_settings(database_url, redis_url, gateway_requests_per_s=0.5)) as server:
        answers = [server.request("GET", "/healthz") for _ in range(8)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert answers[0].status_code == 200
    assert refused
    assert (refused[0].headers["Retry-After"], refused[0].json()["status"]) == ("2", 429)


def statuses(server: GatewayServer, requests: int = 8) -> list[int]:
    """Return the statuses of requests that each name another client."""
    return [
        server.request("GET", "/healthz", headers={"X-Forwarded-For": f"198.51.100.{number}"}).status_code
        for number in range(requests)
    ]


def test_a_client_cannot_choose_its_address(database_url: str, redis_url: str) -> None:
    """X-Forwarded-For is used for rate limits from trusted proxies only."""
    settings = gateway_settings(database_url, redis_url, gateway_requests_per_s=0.5)
    with GatewayServer(settings) as server:
        assert 429 in statuses(server)
    trusting = settings.model_copy(update={"gateway_trusted_proxies": "127.0.0.1"})
    with GatewayServer(trusting) as server:
        assert set(statuses(server)) == {200}


def test_postgres_down_is_a_problem(redis_url: str) -> None:
    """Without Postgres requests get 503 with the setting to check, and /healthz is answered."""
    with GatewayServer(gateway_settings(f"postgresql://u:hush@{NO_SERVER}/db", redis_url)) as server:
        for path in ("/jobs", "/jobs/1", "/jobs/1/logs", "/jobs/1/metrics", "/jobs/1/logs/download"):
            answer = server.request("GET", path)
            assert (answer.status_code, answer.json()["type"]) == (503, "urn:trainwire:problem:postgres-away")
            assert "DATABASE_URL" in answer.json()["detail"]
            assert "hush" not in answer.text
            assert answer.headers["Retry-After"] == "2"
        assert server.get("/healthz") == {"status": "ok"}
        assert server.get("/readyz", status=503)["checks"] == {"postgres": "does not answer", "redis": "ok"}


def test_the_process_lives_while_all_threads_wait(database_url: str, redis_url: str) -> None:
    """While all threads wait for a store, /healthz is answered."""
    may_end, waiting = threading.Event(), threading.Semaphore(0)

    def wait() -> None:
        waiting.release()
        may_end.wait(60)

    with GatewayServer(gateway_settings(database_url, redis_url)) as server, ThreadPoolExecutor(THREADS) as pool:
        server.app.add_api_route("/wait", wait)
        try:
            answers = [pool.submit(server.request, "GET", "/wait") for _ in range(THREADS)]
            assert all(waiting.acquire(timeout=60) for _ in range(THREADS))
            assert server.get("/healthz") == {"status": "ok"}
            assert not any(answer.done() for answer in answers)
        finally:
            may_end.set()


def test_redis_down_is_a_problem(database_url: str) -> None:
    """Without Redis callbacks get 503, and jobs are still returned."""
    with GatewayServer(gateway_settings(database_url, f"redis://{NO_SERVER}/0")) as server:
        answer = server.request("POST", "/jobs/1/callback/logs", json={"lines": ["a"]})
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:trainwire:problem:redis-away")
        assert server.request("GET", "/jobs").status_code == 200


def test_a_database_without_tables_names_the_command(
    database_url: str, redis_url: str, resources: Resources
) -> None:
    """A database that is not migrated is a problem with the command to run."""
    with resources.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("DROP DATABASE IF EXISTS bare"))
        connection.execute(text("CREATE DATABASE bare"))
    bare = f"{database_url.rpartition('/')[0]}/bare"
    with GatewayServer(gateway_settings(bare, redis_url)) as server:
        assert "`trainwire migrate`" in server.get("/jobs", status=503)["detail"]
        assert "migrate" in server.get("/readyz", status=503)["checks"]["postgres"]


def test_stores_that_are_not_there_are_named(
    database_url: str, redis_url: str, resources: Resources, sender: Sender
) -> None:
    """An MLflow or Loki that is not configured, or unavailable, is a problem with the variable's name."""
    job = next(_jobs)
    sender.send(checkpoint(), job=job)
    drain(resources, "checkpoints", job)
    with GatewayServer(gateway_settings(database_url, redis_url, loki_enabled=False)) as server:
        for path, variable in (("mlflow/summary", "MLFLOW_TRACKING_URI"), ("logs/loki", "LOKI_ENABLED")):
            refusal = server.get(f"/jobs/{job}/{path}", status=503)
            assert (refusal["type"], variable in refusal["detail"]) == (
                "urn:trainwire:problem:not-configured",
                True,
            )
    away = {"mlflow_tracking_uri": f"http://{NO_SERVER}", "loki_url": f"http://{NO_SERVER}"}
    with GatewayServer(gateway_settings(database_url, redis_url, **away)) as server:
        assert "MLFLOW_TRACKING_URI" in server.get(f"/jobs/{job}/mlflow/metrics", status=502)["detail"]
        assert "LOKI_URL" in server.get(f"/jobs/{job}/logs/loki", status=502)["detail"]
        assert server.get(f"/jobs/{job}")["mlflow_url"] is None


def test_openapi_describes_everything(gateway: GatewayServer) -> None:
    """Every operation has a summary, a description, and for its responses a schema with a valid example."""
    document = gateway.get("/openapi.json")
    structs = {struct.__name__: struct for struct in _subclasses(msgspec.Struct)}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
            assert operation["description"], path
            for status, answer in operation["responses"].items():
                _check_example(structs, status, answer.get("content", {}).get("application/json"))


def _subclasses(base: type[Any]) -> Iterator[type[Any]]:
    for struct in base.__subclasses__():
        if struct.__module__.startswith("trainwire.gateway."):
            yield struct
        yield from _subclasses(struct)


def _check_example(structs: dict[str, Any], status: str, content: dict[str, Any] | None) -> None:
    if content is None:
        return
    name = content["schema"]["$ref"].rpartition("/")[2]
    assert status.startswith("2")
    msgspec.convert(content["example"], structs[name], strict=True)


def test_the_gateway_counts_its_requests(gateway: GatewayServer) -> None:
    """Requests are counted by route, so that job numbers do not become labels."""
    gateway.get("/jobs/424242", status=404)
    answered = gateway.request("GET", "/metrics").text
    assert 'trainwire_gateway_requests_total{method="GET",route="/jobs/{job_id}",status="404"}' in answered
    assert "424242" not in answered


@pytest.mark.parametrize(
    ("path", "body", "media_type", "wanted"),
    [
        (
            "callback/progress",
            b'{"step": 1,}',
            "application/json",
            ("body", '{"step": 1,}', "at character 11: send JSON"),
        ),
        ("callback/progress", b"a=b", "text/plain", ("body", "b'a=b'", "Content-Type: application/json")),
        (
            "callback/progress",
            b'{"metrics": {"": 1}}',
            "application/json",
            ("metrics.", "", "at least 1 character"),
        ),
        (
            "messages",
            b"\x82\xa6source\xa1s\xa4acks\x91\xa3foo",
            "application/msgpack",
            ("body", "foo", "$.acks[0]"),
        ),
        ("messages", b"\x81\xa6source\x05", "application/msgpack", ("body", "5", "$.source")),
    ],
)
def test_a_body_that_cannot_be_read_is_named(
    gateway: GatewayServer, path: str, body: bytes, media_type: str, wanted: tuple[str, str, str]
) -> None:
    """The problem has the invalid part of the body."""
    answer = gateway.request("POST", f"/jobs/7/{path}", data=body, headers={"Content-Type": media_type})
    assert answer.status_code == 422
    (error,) = msgspec.json.decode(answer.content, type=Problem).errors
    assert (error.field, error.value) == wanted[:2]
    assert wanted[2] in error.detail


@pytest.mark.parametrize("encoding", ["Content-Length: 100", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/jobs/7/messages"),
        ("POST", "/jobs/7/callback/logs"),
        ("PATCH", "/jobs/7"),
        ("POST", "/session"),
    ],
)
def test_a_client_that_breaks_off_is_no_error(
    gateway: GatewayServer, caplog: pytest.LogCaptureFixture, method: str, path: str, encoding: str
) -> None:
    """A request whose body never ends is counted with status 400, and logs no traceback."""
    before = _answered(gateway, method, "400")
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as raw:
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{encoding}"
        raw.sendall(
            head.encode() + b"\r\n\r\n" + (b'9\r\n{"lines":\r\n' if "chunked" in encoding else b'{"lines":')
        )
    deadline = time.monotonic() + 60
    while (after := _answered(gateway, method, "400")) == before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert after == before + 1
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def _answered(gateway: GatewayServer, method: str, status: str) -> float:
    families = text_string_to_metric_families(gateway.request("GET", "/metrics").text)
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == "trainwire_gateway_requests_total"
        and (sample.labels["method"], sample.labels["status"]) == (method, status)
    )


def test_the_gateway_exports_the_list_of_metrics(gateway: GatewayServer) -> None:
    """The exported metrics have the names, types and labels of the list, and there are no others."""
    gateway.get("/healthz")
    found = {
        (family.name, family.type, frozenset(name for name in sample.labels if name != "le"))
        for family in text_string_to_metric_families(gateway.request("GET", "/metrics").text)
        for sample in family.samples
        if not sample.name.endswith("_created")  # the client library's own
    }
    listed = {
        (metric.name.removesuffix("_total"), metric.kind, frozenset(metric.labels)) for metric in GATEWAY_METRICS
    }
    assert found == listed


def test_buckets_fill_again() -> None:
    """A bucket refills with time, and each client has its own."""
    now = [0.0]
    limit = RateLimit(_no_app, per_s=1, clock=lambda: now[0])
    assert [limit.allows("a") for _ in range(5)] == [True] * 4 + [False]
    assert limit.allows("b")
    now[0] = 1.5
    assert [limit.allows("a") for _ in range(2)] == [True, False]


async def _no_app(*_: object) -> None:
    """Never called."""
