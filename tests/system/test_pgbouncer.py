"""All parts that use Postgres, through a PgBouncer that may give each transaction another connection."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import requests
from sqlalchemy import Engine, func, select

from tests.factories import Sender, logs, metrics, rows
from tests.integration.gateway.feed_clients import GatewayProcess, WebSocketClient
from tests.pgbouncer import PgBouncer
from tests.processes import ROOT, wait_until, workers_running
from tests.tls_servers import settings_of
from tests.twins.loki import LokiTwin
from trainwire.schemas.tables import training_logs
from trainwire.workers.resources import Resources

JOBS = range(1, 9)
ROUNDS = 30
"""Many more than the executions after which psycopg prepares a statement."""
OFF = "false"


def test_all_parts_work_by_transaction(resources: Resources, sender: Sender, tmp_path: Path) -> None:
    """Two workers and beat store and deliver all rows once, in order; the gateway and the commands read them."""
    with PgBouncer(tmp_path / "pooler", resources.settings.database_url.get_secret_value()) as pooler:
        settings = settings_of(resources, database_url=pooler.url)
        urls = (pooler.url, settings.redis_url.get_secret_value())
        with (
            LokiTwin() as twin,
            workers_running(
                settings, tmp_path, workers=2, LOKI_URL=twin.url, DATABASE_PREPARED_STATEMENTS=OFF
            ) as workers,
            GatewayProcess(tmp_path, *urls, DATABASE_PREPARED_STATEMENTS=OFF) as gateway,
        ):
            send_round(resources.engine, sender, 0)
            with WebSocketClient(gateway, "/jobs/1/ws") as page:
                for number in range(1, ROUNDS):
                    send_round(resources.engine, sender, number)
                    answer = requests.get(f"{gateway.url}/jobs/{number % len(JOBS) + 1}/logs", timeout=60)
                    assert answer.status_code == 200, answer.text
                page.until("logs", ROUNDS)
            wait_until(lambda: len(twin.lines()) == len(JOBS) * ROUNDS, "all lines in Loki", 120)
            sent = [f"line {number}" for number in range(ROUNDS)]
            assert all([line.line for line in twin.lines(job)] == sent for job in JOBS)
            env = {"DATABASE_URL": urls[0], "REDIS_URL": urls[1], "DATABASE_PREPARED_STATEMENTS": OFF}
            assert "line 7" in commanded(env, "logs", "1")
        stored = rows(resources.engine, training_logs, "job_id", "content")
        assert stored == [(job, line) for job in JOBS for line in sent]
        assert "prepared statement" not in gateway.logged + "".join(worker.output for worker in workers)


def send_round(engine: Engine, sender: Sender, number: int) -> None:
    """Send a line and a point for every job, and wait until the lines are stored."""
    for job in JOBS:
        sender.send(logs(f"line {number}", ts=time.time_ns()), job=job)
        sender.send(metrics(loss=1.0), job=job)
    wait_until(partial(are_stored, engine, len(JOBS) * (number + 1)), "the lines", 60)


def are_stored(engine: Engine, lines: int) -> bool:
    """Return whether Postgres has that many log rows."""
    with engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(training_logs)).scalar_one() == lines


def commanded(env: dict[str, str], *arguments: str) -> str:
    """Run a command, and return its output."""
    done = subprocess.run(
        [sys.executable, "-m", "trainwire", *arguments],
        cwd=ROOT,
        env=os.environ | env,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout
