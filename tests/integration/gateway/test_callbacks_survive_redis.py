"""A Redis that restarts from older data: no number is used again, and 200 means stored."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from sqlalchemy import Engine

from tests.factories import rows
from tests.gateway_server import GatewayServer, gateway_settings
from tests.integration.gateway.test_callbacks import drain_all
from tests.processes import wait_until
from trainwire.schemas.tables import training_logs
from trainwire.stack.valkey import EmbeddedValkey
from trainwire.workers.resources import Resources
from trainwire.workers.settings import Settings

JOB = 8_000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    """A Valkey for one test."""
    with EmbeddedValkey(tmp_path / "first") as running:
        yield running


@pytest.fixture
def stored(server: EmbeddedValkey, settings: Settings, engine: Engine) -> Iterator[Resources]:
    """The resources of a worker that drains this server."""
    with redis.Redis.from_url(server.url) as client:
        yield Resources(settings, engine, client)


@pytest.fixture
def own_gateway(server: EmbeddedValkey, database_url: str) -> Iterator[GatewayServer]:
    """A gateway of this server."""
    with GatewayServer(gateway_settings(database_url, server.url)) as running:
        yield running


def post_line(gateway: GatewayServer, line: str) -> None:
    """Send one line."""
    gateway.post(f"/jobs/{JOB}/callback/logs", {"lines": [line]})


def test_a_restart_from_an_older_file_uses_no_number_again(
    own_gateway: GatewayServer, server: EmbeddedValkey, stored: Resources, tmp_path: Path
) -> None:
    """After Redis restarts from older data, the next messages are stored too, not taken for repetitions."""
    post_line(own_gateway, "1")
    shutil.copytree(tmp_path / "first" / "valkey", tmp_path / "older")  # written before it answers
    post_line(own_gateway, "2")
    drain_all(stored, JOB)
    server.kill()
    shutil.rmtree(tmp_path / "first" / "valkey")
    shutil.copytree(tmp_path / "older", tmp_path / "first" / "valkey")
    server.start()
    for line in ("3", "4"):
        post_line(own_gateway, line)
    own_gateway.post(f"/jobs/{JOB}/callback/completion", {"exit_code": 0})
    drain_all(stored, JOB)
    assert rows(stored.engine, training_logs, "content") == ["1", "2", "3", "4"]
    answer = own_gateway.get(f"/jobs/{JOB}/completeness")
    assert (answer["state"], answer["missing"], len(answer["silent_sources"])) == ("unproven", 0, 1)
    assert answer["line"].count("ended without a completion: callback-")


def test_a_primary_that_followed_an_older_one_uses_no_number_again(
    own_gateway: GatewayServer, server: EmbeddedValkey, stored: Resources, tmp_path: Path
) -> None:
    """A replica that lacks a stored message was primary for a while, and the old primary is promoted again."""
    post_line(own_gateway, "1")
    password = server.url.split("@")[0].rpartition(":")[2]
    first: redis.Redis = stored.redis
    first.config_set("masterauth", password)
    with EmbeddedValkey(tmp_path / "second") as other, redis.Redis.from_url(other.url) as second:
        second.config_set("masterauth", password)
        second.replicaof("127.0.0.1", server.port)
        wait_until(lambda: second.info("replication").get("master_link_status") == "up", "the replica")
        second.config_set("requirepass", password)
        second.replicaof("NO", "ONE")
        post_line(own_gateway, "2")
        drain_all(stored, JOB)
        first.replicaof("127.0.0.1", other.port)
        wait_until(lambda: first.info("replication").get("master_link_status") == "up", "the old primary")
        first.replicaof("NO", "ONE")
    post_line(own_gateway, "3")
    drain_all(stored, JOB)
    assert rows(stored.engine, training_logs, "content") == ["1", "2", "3"]


def test_late_words_after_a_restart_begin_no_attempt(
    own_gateway: GatewayServer, server: EmbeddedValkey, stored: Resources
) -> None:
    """Late messages from a new source do not reopen a job that has ended."""
    post_line(own_gateway, "1")
    own_gateway.post(f"/jobs/{JOB}/callback/completion", {"exit_code": 0})
    drain_all(stored, JOB)
    server.stop()
    server.start()
    post_line(own_gateway, "late")
    drain_all(stored, JOB)
    shown = own_gateway.get(f"/jobs/{JOB}")
    assert (shown["status"], shown["attempt"]) == ("completed", 1)
    assert rows(stored.engine, training_logs, "content") == ["1", "late"]


def test_a_waiting_callback_is_answered_when_stored(own_gateway: GatewayServer, stored: Resources) -> None:
    """The answer is 202 until the message is in Postgres, then 200; the same key refers to the same message."""
    path, headers = f"/jobs/{JOB}/callback/logs", {"Idempotency-Key": "one"}
    body = {"lines": ["a"]}
    assert own_gateway.post(f"{path}?wait_s=0.1", body, headers=headers)["status"] == "accepted"
    later = threading.Timer(0.5, drain_all, (stored, JOB))
    later.start()
    answer = own_gateway.post(f"{path}?wait_s=30", body, status=200, headers=headers)
    later.join()
    assert answer == {"status": "stored", "job_id": JOB}
    assert rows(stored.engine, training_logs, "content") == ["a"]
    refusal = own_gateway.post(f"{path}?wait_s=-1", body, status=422)
    assert [error["field"] for error in refusal["errors"]] == ["wait_s"]
