"""A gateway whose reader threads are all busy."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import text

from tests.gateway_server import GatewayServer, gateway_settings
from tests.processes import wait_until
from trainwire.gateway.auth.tokens import create_token
from trainwire.workers.resources import Resources

THREADS = 40
"""The number of AnyIO's worker threads."""


def test_callbacks_are_taken_while_all_reads_hang(database_url: str, redis_url: str, resources: Resources) -> None:
    """While all reads wait for Postgres, callbacks and refusals are answered and the gateway is ready."""
    with resources.engine.begin() as connection:
        _, token = create_token(connection, "gpu", "admin")
    headers = {"Authorization": f"Bearer {token}"}
    settings = gateway_settings(database_url, redis_url, gateway_auth="on", gateway_db_connections=THREADS)
    with GatewayServer(settings) as server, ThreadPoolExecutor(THREADS) as pool:
        with resources.engine.connect() as locking:
            locking.execute(text("LOCK TABLE training_jobs IN ACCESS EXCLUSIVE MODE"))
            reads = [pool.submit(server.request, "GET", "/jobs", headers=headers) for _ in range(THREADS)]
            wait_until(lambda: _waiting_for_locks(resources) == THREADS, "all threads wait for Postgres")
            for kind, body in (("logs", {"lines": ["a"]}), ("completion", {"exit_code": 0})):
                assert server.post(f"/jobs/1/callback/{kind}", body, headers=headers)["job_id"] == 1
            assert server.request("POST", "/jobs/1/callback/logs", json={"lines": ["a"]}).status_code == 401
            assert server.post("/jobs/1/callback/logs", {"lines": 1}, status=422, headers=headers)
            assert server.get("/readyz")["ready"]
            assert not any(read.done() for read in reads)
        assert {read.result().status_code for read in reads} == {200}


def _waiting_for_locks(resources: Resources) -> int:
    with resources.engine.connect() as connection:
        counted = connection.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted"))
        return int(counted.scalar_one())
