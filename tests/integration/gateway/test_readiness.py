"""Whether the gateway is ready where the streams are on servers of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gateway_server import GatewayServer, gateway_settings
from tests.valkey_cluster import ValkeyCluster
from trainwire.valkey import EmbeddedValkey

ALL_OK = {"postgres": "ok", "redis": "ok", "streams": "ok"}
STREAMS_AWAY = ALL_OK | {"streams": "does not answer"}


def test_streams_on_a_server_of_their_own(database_url: str, redis_url: str, tmp_path: Path) -> None:
    """A gateway whose streams are away is not ready, however well the broker does, and is when they return."""
    with EmbeddedValkey(tmp_path) as streams:
        settings = gateway_settings(database_url, redis_url, streams_url=streams.url)
        with GatewayServer(settings) as gateway:
            assert gateway.get("/readyz") == {"ready": True, "checks": ALL_OK}
            streams.kill()
            assert gateway.get("/readyz", 503) == {"ready": False, "checks": STREAMS_AWAY}
            assert gateway.get("/healthz") == {"status": "ok"}
            streams.start()
            assert gateway.get("/readyz")["ready"]


@pytest.mark.timeout(180)
def test_streams_on_a_cluster(database_url: str, redis_url: str, tmp_path: Path) -> None:
    """A gateway starts while the whole cluster is away, says so, and is ready as soon as one server answers."""
    with ValkeyCluster(tmp_path) as cluster:
        for node in cluster.nodes:
            node.kill()
        settings = gateway_settings(database_url, redis_url, streams_url=cluster.url)
        with GatewayServer(settings) as gateway:
            assert gateway.get("/readyz", 503) == {"ready": False, "checks": STREAMS_AWAY}
            answer = gateway.request("POST", "/jobs/1/callback/logs", json={"lines": ["a"]})
            assert (answer.status_code, answer.json()["type"]) == (503, "urn:trainwire:problem:redis-away")
            cluster.nodes[0].start()
            assert gateway.get("/readyz")["checks"] == ALL_OK
            for node in cluster.nodes[1:]:
                node.start()
            assert gateway.get("/readyz")["checks"] == ALL_OK
