"""Readiness of the gateway if the streams are on other servers."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from sqlalchemy import Engine, text

from tests.gateway_server import GatewayServer, gateway_settings
from tests.processes import wait_until
from tests.tcp_proxy import TcpProxy
from tests.valkey_cluster import ValkeyCluster
from trainwire.gateway.routes import health_routes
from trainwire.gateway.routes.health_routes import MOST_RUNNING
from trainwire.schemas.migrations import head_revision
from trainwire.stack.valkey import EmbeddedValkey

ALL_OK = {"postgres": "ok", "redis": "ok", "streams": "ok"}
STREAMS_AWAY = ALL_OK | {"streams": "does not answer"}


def test_streams_on_a_server_of_their_own(database_url: str, redis_url: str, tmp_path: Path) -> None:
    """A gateway is not ready while the streams' server is unavailable, even if the broker is available."""
    with EmbeddedValkey(tmp_path) as streams:
        settings = gateway_settings(database_url, redis_url, streams_url=streams.url)
        with GatewayServer(settings) as gateway:
            assert gateway.get("/readyz") == {"ready": True, "checks": ALL_OK}
            streams.kill()
            assert gateway.get("/readyz", 503) == {"ready": False, "checks": STREAMS_AWAY}
            assert gateway.get("/healthz") == {"status": "ok"}
            streams.start()
            assert gateway.get("/readyz")["ready"]


def test_a_frozen_postgres_is_reported_in_time(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server whose connections stay open and silent makes the gateway unready, without a wait for its return."""
    monkeypatch.setattr(health_routes, "CHECK_TIMEOUT_S", 0.5)
    url = urlsplit(database_url)
    with TcpProxy(f"{url.hostname}:{url.port}") as proxy:
        user, _, _ = url.netloc.rpartition("@")
        through = url._replace(netloc=f"{user}@{urlsplit(proxy.url).netloc}").geturl()
        with GatewayServer(gateway_settings(through, redis_url)) as gateway:
            assert gateway.get("/readyz")["ready"]
            proxy.freeze()
            away = {"postgres": "does not answer", "redis": "ok"}
            for _ in range(MOST_RUNNING + 2):
                answer = gateway.http.get(f"{gateway.url}/readyz", timeout=10)
                assert (answer.status_code, answer.json()["checks"]) == (503, away)
            assert len(gateway.app.state.resources.readiness_running["postgres"]) <= MOST_RUNNING
            proxy.thaw()
            wait_until(lambda: gateway.request("GET", "/readyz").status_code == 200, "the gateway is ready again")


JOBS = "ALTER TABLE training_jobs"
ADDS = (f"{JOBS} ADD newer text", f"{JOBS} DROP newer")
LACKS = (f"{JOBS} RENAME name TO x", f"{JOBS} RENAME x TO name")


@pytest.mark.parametrize(
    ("revision", "change", "status"),
    [("9999", ADDS, 200), ("9999", LACKS, 503), ("0001", ADDS, 503)],
    ids=["newer", "newer, without what we use", "older"],
)
def test_an_old_gateway_stays_ready_on_newer_tables(
    gateway: GatewayServer, engine: Engine, revision: str, change: tuple[str, str], status: int
) -> None:
    """After a migration gateways of the version before stay ready, as long as the tables have their columns."""
    set_revision = text("UPDATE alembic_version SET version_num = :to")
    with engine.begin() as connection:
        connection.execute(text(change[0]))
        connection.execute(set_revision, {"to": revision})
    try:
        assert gateway.get("/readyz", status)["ready"] == (status == 200)
    finally:
        with engine.begin() as connection:
            connection.execute(text(change[1]))
            connection.execute(set_revision, {"to": head_revision()})


def test_streams_on_a_cluster(database_url: str, redis_url: str, tmp_path: Path) -> None:
    """A gateway starts without its cluster, is not ready, and becomes ready with the first server."""
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
