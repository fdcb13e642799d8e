"""Errors for MLflow's answers, in the client of deliveries and in the one that only reads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

import trainwire.stores.mlflow.http
from trainwire.stores.mlflow.http import INVALID, MlflowApi, MlflowRefused, MlflowUnavailable, plain_send
from trainwire.workers.sinks.mlflow import plugin as mlflow_plugin
from trainwire.workers.sinks.mlflow.plugin import mlflow_api

REFUSAL = b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "no such thing"}'


class Answers(BaseHTTPRequestHandler):
    """Answers all requests alike, and records them."""

    status: ClassVar[int] = 200
    body: ClassVar[bytes] = b"{}"
    extra: ClassVar[dict[str, str]] = {}
    pause_s: ClassVar[float] = 0.0
    asked: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        """Answer."""
        self.asked.append((self.path, self.headers.get("Authorization")))
        time.sleep(self.pause_s)
        self.send_response(self.status)
        for name, value in {"Content-Length": str(len(self.body)), **self.extra}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    """The address of a server that answers as the test sets it."""
    Answers.status, Answers.body, Answers.extra, Answers.pause_s, Answers.asked = 200, b"{}", {}, 0.0, []
    listening = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}"
    listening.shutdown()
    listening.server_close()


@pytest.fixture(params=["deliverer", "reader"])
def api(request: pytest.FixtureRequest, server: str) -> MlflowApi:
    """Each of the two connections."""
    return mlflow_api(server) if request.param == "deliverer" else MlflowApi(plain_send(server, {}))


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "check MLFLOW_TRACKING_USERNAME"),
        (403, "check what the user may do"),
        (404, "is MLFLOW_TRACKING_URI the address of MLflow itself"),
        (429, "rate limit"),
        (500, "MLflow answered 500: out of order"),
        (503, "MLflow answered 503: out of order"),
    ],
)
def test_a_temporary_error_is_unavailable(api: MlflowApi, status: int, said: str) -> None:
    """The error has the answer's message and a remedy, without a retry."""
    Answers.status, Answers.body = status, b"out of order"
    with pytest.raises(MlflowUnavailable, match=said) as caught:
        api.get("runs/get", run_id="1")
    assert caught.value.retry_after_s is None
    assert len(Answers.asked) == 1


def test_mlflows_own_wish_is_honoured(api: MlflowApi) -> None:
    """Retry-After is part of the error; the client does not sleep."""
    Answers.status, Answers.extra = 429, {"Retry-After": "100"}
    began = time.monotonic()
    with pytest.raises(MlflowUnavailable) as caught:
        api.get("runs/get")
    assert caught.value.retry_after_s == 100
    assert time.monotonic() - began < 50


@pytest.mark.parametrize("status", [400, 404])
def test_a_permanent_error_is_refused(api: MlflowApi, status: int) -> None:
    """The error has MLflow's own code and message."""
    Answers.status, Answers.body = status, REFUSAL
    with pytest.raises(MlflowRefused, match="no such thing") as caught:
        api.get("runs/get")
    assert caught.value.code == INVALID


def test_an_error_of_another_kind_is_no_refusal(api: MlflowApi) -> None:
    """An error that is not about the data is never taken for a refusal of the data."""
    Answers.status, Answers.body = 400, b'{"error_code": "TEMPORARILY_UNAVAILABLE", "message": "later"}'
    with pytest.raises(MlflowUnavailable, match="later"):
        api.get("runs/get")


def test_another_server_is_unavailable(api: MlflowApi) -> None:
    """A login page with status 200 does not count as an answer of MLflow."""
    Answers.body = b"<html>please log in</html>"
    with pytest.raises(MlflowUnavailable, match="please log in"):
        api.get("runs/get")


def test_a_server_that_hangs_is_given_up(api: MlflowApi, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that hangs is one timeout, without a retry, with the server's name."""
    Answers.pause_s = 1.0
    for module in (trainwire.stores.mlflow.http, mlflow_plugin):
        monkeypatch.setattr(module, "TIMEOUT_S", (0.2, 0.2))
    host = server.removeprefix("http://")
    with pytest.raises(MlflowUnavailable, match=rf"MLflow at {host} does not answer: \w*Timeout"):
        api.get("runs/get")
    assert len(Answers.asked) == 1


def test_credentials_are_those_of_mlflows_environment(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """User and password, or a token, the same for both connections, and none where none is set."""
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    expected = [None, "Bearer secret", "Basic bWU6cGFzcw=="]
    for environment in ({}, {"TOKEN": "secret"}, {"USERNAME": "me", "PASSWORD": "pass"}):
        for name, value in environment.items():
            monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
        mlflow_api(server).get("runs/get")
        MlflowApi(plain_send(server)).get("runs/get")
    assert [authorization for _, authorization in Answers.asked] == [each for each in expected for _ in range(2)]
