"""The gateway below a path of a real nginx: page files, calls, streams, redirects, the cookie."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import pytest
import requests
from websockets.sync.client import connect
from websockets.typing import Origin

from tests.factories import Sender, drain, logs, rows
from tests.gateway_server import GatewayServer, gateway_settings
from tests.nginx import Nginx
from trainwire import Run, TrainerSettings
from trainwire.gateway.auth.tokens import create_token
from trainwire.ingest.settings.setting_groups import SpoolSettings, Timing
from trainwire.schemas.tables import training_logs
from trainwire.workers.resources import Resources

NOT_REMOVED = {"proxy_pass http://127.0.0.1:8800/;": "proxy_pass http://127.0.0.1:8800;"}
NO_HOST = {"proxy_set_header Host $http_host;": ""}


@pytest.fixture(params=["removed", "not removed"])
def nginx(
    request: pytest.FixtureRequest, database_url: str, redis_url: str, resources: Resources, tmp_path: Path
) -> Iterator[Nginx]:
    """An nginx that removes its path from requests, or one that does not and a gateway that knows the path."""
    assert resources
    is_removed = request.param == "removed"
    more = {} if is_removed else {"gateway_root_path": "/trainwire"}
    settings = gateway_settings(database_url, redis_url, gateway_trusted_proxies="127.0.0.1", **more)
    with (
        GatewayServer(settings) as server,
        Nginx(tmp_path, server.url, {} if is_removed else NOT_REMOVED) as proxy,
    ):
        yield proxy


def test_everything_is_below_the_path(nginx: Nginx, resources: Resources, sender: Sender) -> None:
    """Page and scripts, JSON, OpenAPI, server-sent events and WebSockets are found by relative addresses."""
    sender.send(logs("hello"))
    drain(resources)
    page = requests.get(nginx.url.rstrip("/"), timeout=60)
    assert page.url == nginx.url
    files = re.findall(r'(?:src|href)="(page/[^"]+)"', page.text)
    assert len(files) >= 8
    for file in files:
        assert requests.get(urljoin(page.url, file), timeout=60).status_code == 200
    assert requests.get(f"{nginx.url}jobs/1/logs", timeout=60).json()["items"][0]["text"] == "hello"
    document = requests.get(f"{nginx.url}openapi.json", timeout=60)
    server = urljoin(document.url, document.json()["servers"][0]["url"])
    assert requests.get(f"{server}jobs", timeout=60).status_code == 200
    with requests.get(f"{nginx.url}jobs/1/events", stream=True, timeout=60) as events:
        assert b"snapshot" in next(line for line in events.iter_lines() if line.startswith(b"event"))
    own = Origin(nginx.url.removesuffix("/trainwire/"))
    with connect(f"ws{nginx.url.removeprefix('http')}jobs/1/ws", origin=own) as feed:
        assert "snapshot" in str(feed.recv(timeout=60))


@pytest.mark.parametrize("path", ["jobs/", "jobs/?limit=1", "jobs/1/logs/?limit=1"])
def test_a_redirect_stays_below_the_path(nginx: Nginx, resources: Resources, sender: Sender, path: str) -> None:
    """A path with an extra slash is redirected to the path without it, with the query."""
    sender.send(logs("hello"))
    drain(resources)
    answer = requests.get(nginx.url + path, timeout=60)
    assert (answer.status_code, answer.url) == (200, nginx.url + path.replace("/?", "?").rstrip("/"))


def test_the_cookie_is_for_the_path_alone(guarded: GatewayServer, resources: Resources, tmp_path: Path) -> None:
    """The cookie is not sent to other applications of the host; the page's requests and logout work."""
    with resources.engine.begin() as connection:
        _, token = create_token(connection, "page", "viewer")
    with Nginx(tmp_path, guarded.url) as nginx, requests.Session() as browser:
        assert browser.post(f"{nginx.url}session", json={"token": token}, timeout=60).status_code == 200
        assert [cookie.path for cookie in browser.cookies] == ["/trainwire"]
        assert browser.get(f"{nginx.url}jobs", timeout=60).status_code == 200
        assert browser.delete(f"{nginx.url}session", timeout=60).status_code == 204
        assert browser.get(f"{nginx.url}jobs", timeout=60).status_code == 401


def test_a_proxy_that_keeps_the_host_back_is_named(gateway: GatewayServer, tmp_path: Path) -> None:
    """If the proxy does not pass Host on, the problem names the header and nginx' setting for it."""
    with Nginx(tmp_path, gateway.url, NO_HOST) as nginx:
        own = {"Origin": nginx.url.removesuffix("/trainwire/")}
        answer = requests.delete(f"{nginx.url}session", headers=own, timeout=60)
    assert answer.status_code == 403
    assert "proxy_set_header Host $http_host" in answer.json()["detail"]
    assert f"Host header 127.0.0.1:{gateway.port}" in answer.json()["detail"]


def test_a_trainer_sends_through_nginx(
    database_url: str, redis_url: str, resources: Resources, tmp_path: Path
) -> None:
    """Its address is that of the page; requests become as small as the limit of nginx demands."""
    settings = gateway_settings(database_url, redis_url, gateway_trusted_proxies="127.0.0.1")
    with (
        GatewayServer(settings) as server,
        Nginx(tmp_path, server.url, {"client_max_body_size 8m;": "client_max_body_size 300k;"}) as nginx,
    ):
        spool = SpoolSettings(tmp_path / "spool")
        trainer = TrainerSettings(url=nginx.url, timing=Timing(flush_interval_s=1, settle_s=0), spool=spool)
        with Run(2, "digits", settings=trainer) as run:
            texts = [os.urandom(32).hex() for _ in range(50_000)]
            run.log_lines(texts, "stdout", time.time_ns())
            receipt = run.finish(timeout_s=180)
    assert receipt.unsent == {"logs": 0, "metrics": 0, "completions": 0}
    drain(resources, "logs", 2)
    assert rows(resources.engine, training_logs, "content") == texts
