"""The servers of the contract suite: the twin, and a real Loki if there is one."""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

import pytest
import requests

from tests.contract.loki_api import LokiApi
from tests.twins.loki import Limits, LokiTwin

LOKI_IMAGE = "grafana/loki:3.7.6"
LOKI_COMMAND = "-config.file=/etc/loki/local-config.yaml -reporting.enabled=false"
LOKI_START_S = 60


@pytest.fixture(scope="session", params=["twin", "real"])
def loki_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The twin of Loki, then a real one: that of TEST_LOKI_URL, or a container's."""
    if request.param == "twin":
        with LokiTwin(limits=Limits(deletion="filter-and-delete")) as twin:
            yield twin.url
    elif given := os.environ.get("TEST_LOKI_URL"):
        if not _is_ready(given, time.monotonic() + LOKI_START_S):
            _missing(f"TEST_LOKI_URL={given} does not answer /ready")
        yield given.rstrip("/")
    else:
        with _container() as url:
            yield url


@pytest.fixture
def loki(loki_url: str) -> LokiApi:
    """A job of this test's own."""
    return LokiApi(loki_url)


@contextmanager
def _container() -> Iterator[str]:
    with warnings.catch_warnings():  # a third party's, at its import and start
        warnings.simplefilter("ignore")
        container = _started()
    try:
        url = f"http://{container.get_container_host_ip()}:{container.get_exposed_port(3100)}"
        assert _is_ready(url, time.monotonic() + LOKI_START_S), f"{LOKI_IMAGE} did not get ready"
        yield url
    finally:
        container.stop()


def _started() -> Any:
    if not _engine_listens():
        pytest.skip("no TEST_LOKI_URL, and no Docker engine listens")
    containers = import_module("testcontainers.core.container")
    return containers.DockerContainer(LOKI_IMAGE).with_exposed_ports(3100).start()


def _engine_listens() -> bool:
    """Return whether a Docker engine listens. Asks the socket: the client leaks one if there is no engine."""
    if os.environ.get("DOCKER_HOST"):
        return True
    with socket.socket(socket.AF_UNIX) as engine:
        return engine.connect_ex("/var/run/docker.sock") == 0


def _is_ready(url: str, deadline: float) -> bool:
    while time.monotonic() < deadline:
        try:
            if requests.get(f"{url.rstrip('/')}/ready", timeout=5).status_code == 200:
                return True
        except requests.RequestException:
            if not os.environ.get("CI"):
                return False
        time.sleep(0.5)
    return False


def _missing(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
