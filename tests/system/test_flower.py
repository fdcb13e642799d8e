"""Flower as a process: its access control, and its view of our orders."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis.client import PubSub

from tests.factories import Sender, logs
from tests.processes import START_TIMEOUT_S, Process, wait_until, workers_running
from trainwire.schemas.keys import events_channel
from trainwire.stack.persisted_config import usable_port
from trainwire.stores.settings import WrongSettings
from trainwire.workers.operations.flower import credentials_for
from trainwire.workers.resources import Resources

OPERATOR = {"FLOWER_USER": "operator", "FLOWER_PASSWORD": "a,b:c d"}


@contextmanager
def flower_running(
    resources: Resources, folder: Path, *arguments: str, **env: str
) -> Iterator[tuple[Process, str]]:
    """Run Flower; yields its process and its address on this machine."""
    port = usable_port(folder, "flower")
    flower = Process(resources.settings, folder / "flower.log", "flower", "--port", str(port), *arguments, **env)
    url = f"http://127.0.0.1:{port}"
    try:
        flower.start()
        wait_until(lambda: answers(f"{url}/healthcheck") == 200, "Flower's start", START_TIMEOUT_S)
        yield flower, url
    finally:
        flower.stop()


def answers(url: str, credentials: str | None = None, host: str | None = None) -> int:
    """Return the status of a response; 0 if there is none."""
    try:
        with opened(url, credentials, host) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as exc:
        return exc.code
    except OSError:
        return 0


def opened(url: str, credentials: str | None = None, host: str | None = None) -> Any:
    """Open a page, by default with the host name of its URL."""
    request = urllib.request.Request(url, headers={} if host is None else {"Host": host})
    if credentials is not None:
        request.add_header("Authorization", f"Basic {base64.b64encode(credentials.encode()).decode()}")
    return urllib.request.urlopen(request, timeout=60)


def test_a_flower_for_others_asks_for_a_password(resources: Resources, tmp_path: Path) -> None:
    """On all addresses every page but the health check needs the password, which `ps` does not show."""
    with flower_running(resources, tmp_path, "--address", "0.0.0.0", **OPERATOR) as (flower, url):
        for page in ("/", "/tasks", "/metrics", "/api/workers"):
            assert answers(url + page) == 401, page
            assert answers(url + page, "operator:wrong") == 401, page
        assert answers(f"{url}/workers", "operator:a,b:c d") == 200
        assert answers(f"{url}/metrics", "operator:a,b:c d") == 200
        process = psutil.Process(flower.process.pid)
        assert "a,b:c d" not in " ".join(process.cmdline())
        assert "a,b:c d" not in flower.output


LOCAL = ("localhost", "LOCALHOST:5555", "127.0.0.1:1", "127.8.8.8", "[::1]:5555")
FOREIGN = (
    "evil.example",
    "evil.example:5555",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "10.0.0.1",
    "0.0.0.0",
)
ODD = ("[", "localhost@evil.example", "localhost, evil.example", "")


def test_a_flower_without_a_password_answers_local_names_only(resources: Resources, tmp_path: Path) -> None:
    """A foreign host name (DNS rebinding) is refused on every page, files included."""
    with flower_running(resources, tmp_path) as (_, url):
        assert [answers(f"{url}/workers", host=host) for host in LOCAL] == [200] * len(LOCAL)
        assert all(answers(f"{url}/workers", host=host) in {400, 403} for host in ODD)
        for host in FOREIGN:
            for page in ("/", "/workers", "/metrics", "/healthcheck", "/static/css/flower.css", "/api/workers"):
                assert answers(url + page, host=host) == 403, (host, page)
        with pytest.raises(urllib.error.HTTPError) as refused, opened(url, host="evil.example"):
            pass
        assert refused.value.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert "without FLOWER_USER and FLOWER_PASSWORD" in refused.value.read().decode()


def test_a_flower_with_a_password_answers_any_name(resources: Resources, tmp_path: Path) -> None:
    """With a password any host name is accepted, because a proxy may use another one."""
    with flower_running(resources, tmp_path, **OPERATOR) as (_, url):
        assert answers(f"{url}/workers", "operator:a,b:c d", "flower.example") == 200
        assert answers(f"{url}/workers", host="flower.example") == 401


def test_a_flower_for_others_without_a_password_does_not_start(resources: Resources, tmp_path: Path) -> None:
    """It ends at once with an error that names the settings to set."""
    arguments = ("flower", "--address", "0.0.0.0", "--port", str(usable_port(tmp_path, "flower")))
    flower = Process(resources.settings, tmp_path / "flower.log", *arguments).start()
    assert flower.process.wait(START_TIMEOUT_S) == 78
    assert "set FLOWER_USER and FLOWER_PASSWORD" in flower.output
    assert "Traceback" not in flower.output


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_on_loopback_no_password_is_needed(address: str) -> None:
    """On loopback no password is needed, and one that is set is required."""
    assert credentials_for(address, {}) is None
    assert credentials_for(address, OPERATOR) == "operator:a,b:c d"


@pytest.mark.parametrize(
    ("address", "environ"),
    [
        ("0.0.0.0", {}),
        ("", {}),
        ("::", {}),
        ("10.0.0.1", {}),
        ("flower.example", {}),
        ("127.0.0.1", {"FLOWER_USER": "operator"}),
        ("127.0.0.1", {"FLOWER_PASSWORD": "secret"}),
        ("127.0.0.1", {"FLOWER_USER": "a:b", "FLOWER_PASSWORD": "secret"}),
    ],
)
def test_an_open_address_without_a_password_is_refused(address: str, environ: dict[str, str]) -> None:
    """Every other address needs both variables; one alone is an error."""
    with pytest.raises(WrongSettings, match="FLOWER_"):
        credentials_for(address, environ)


def test_orders_have_readable_names_and_arguments(resources: Resources, sender: Sender, tmp_path: Path) -> None:
    """Flower shows the drained stream of an order, and the number of events of an announcement, not the events."""
    with (
        workers_running(resources.settings, tmp_path),
        flower_running(resources, tmp_path, **OPERATOR) as (_, url),
        PubSub(resources.redis.connection_pool) as pubsub,
    ):
        pubsub.subscribe(events_channel(2))  # without a subscriber no events are announced

        def tasks() -> dict[str, str]:
            with opened(f"{url}/api/tasks?limit=500", "operator:a,b:c d") as answer:
                return {task["name"]: task["args"] for task in json.load(answer).values() if task["args"]}

        def both_are_there() -> bool:
            sender.send(logs("a secret line"), job=2)
            return {"trainwire.drain", "trainwire.notify"} <= set(tasks())

        wait_until(both_are_there, "a drain and its announcement", 120)
        found = tasks()
    assert "logs" in found["trainwire.drain"]
    assert "events of 1 jobs" in found["trainwire.notify"]
    assert "a secret line" not in found["trainwire.notify"]
