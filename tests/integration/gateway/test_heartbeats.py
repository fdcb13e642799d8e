"""Heartbeats of the live feed while a store is frozen, and while no worker runs."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import redis
from websockets.sync.client import ClientConnection, connect

from tests.factories import logs
from tests.gateway_server import GatewayServer, gateway_settings
from tests.integration.gateway.feed_clients import DEADLINE_S, Trainer
from tests.tcp_proxy import proxied
from trainwire.gateway.feed import heartbeats
from trainwire.schemas.keys import HALTED_KEY, stream_key
from trainwire.stack.valkey import EmbeddedValkey

NO_WORKER = "no worker stores messages"


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway checks its stores more often than usual."""
    monkeypatch.setattr(heartbeats, "CHECK_EVERY_S", 0.1)
    monkeypatch.setattr(heartbeats, "ANSWER_TIMEOUT_S", 1.0)


def follow(gateway: GatewayServer, path: str) -> ClientConnection:
    """Connect to the feed at `path`, with heartbeats."""
    return connect(f"ws://127.0.0.1:{gateway.port}{path}?heartbeat=true", max_size=None, close_timeout=1)


def await_problem(client: ClientConnection, problem: str | None) -> None:
    """Read frames until a heartbeat with this problem."""
    while (event := json.loads(client.recv(timeout=DEADLINE_S))["event"])["type"] != "heartbeat" or event[
        "problem"
    ] != problem:
        pass


def test_a_frozen_postgres_is_reported(database_url: str, redis_url: str, trainer: Trainer) -> None:
    """While Postgres is frozen, heartbeats report it, to new clients too, which have no first frame yet."""
    trainer.send(logs("one"))
    path = f"/jobs/{trainer.job_id}/ws"
    with (
        proxied(database_url) as (proxy, url),
        GatewayServer(gateway_settings(url, redis_url)) as gateway,
        follow(gateway, "/jobs/ws") as client,
    ):
        await_problem(client, None)
        proxy.freeze()
        await_problem(client, "Postgres does not answer")
        with follow(gateway, path) as newcomer:
            await_problem(newcomer, "Postgres does not answer")
            proxy.thaw()
            await_problem(newcomer, None)
        await_problem(client, None)


def test_a_frozen_redis_is_reported(database_url: str, redis_url: str) -> None:
    """While the Redis of the streams is frozen, no message can be stored, and heartbeats report it."""
    with (
        proxied(redis_url) as (proxy, url),
        GatewayServer(gateway_settings(database_url, url)) as gateway,
        follow(gateway, "/jobs/ws") as client,
    ):
        await_problem(client, None)
        proxy.freeze()
        await_problem(client, "Redis does not answer")
        proxy.thaw()
        await_problem(client, None)


def test_messages_that_no_worker_stores_are_reported(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that stays the oldest of its stream is reported, unless the stream is halted or workers go on."""
    monkeypatch.setattr(heartbeats, "STUCK_S", 1.0)
    stream = stream_key("metrics", 3)
    old_ms = int((time.time() - 60) * 1000)
    with (
        EmbeddedValkey(tmp_path) as streams,
        redis.Redis.from_url(streams.url) as trainer,
        GatewayServer(gateway_settings(database_url, streams.url)) as gateway,
        follow(gateway, "/jobs/ws") as client,
    ):
        trainer.xadd(stream, {"body": "late"}, id=f"{old_ms}-0")
        trainer.xadd(stream, {"body": "later"}, id=f"{old_ms}-1")
        trainer.xadd(stream_key("logs", 0), {"body": "new"})
        await_problem(client, NO_WORKER)
        trainer.xtrim(stream, 1, approximate=False)
        await_problem(client, None)  # a worker goes on, although it is behind
        await_problem(client, NO_WORKER)
        trainer.hset(HALTED_KEY, stream, "invalid entries")
        await_problem(client, None)
