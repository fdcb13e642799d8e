"""Trainers that send over HTTPS: exactly once through kills of the gateway, outages of Redis and lost answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from tests.factories import one, rows
from tests.integration.gateway.feed_clients import GatewayProcess
from tests.processes import ROOT, wait_until, workers_running
from tests.tcp_proxy import TcpProxy
from trainwire import Run, TrainerSettings
from trainwire.gateway.auth.tokens import create_token
from trainwire.ingest.receipt import Receipt
from trainwire.ingest.settings.setting_groups import SpoolSettings, Timing
from trainwire.schemas.tables import training_jobs, training_logs, training_metrics
from trainwire.stack.valkey import EmbeddedValkey
from trainwire.stores.postgres.completeness import assess
from trainwire.stores.postgres.source_positions import find_positions
from trainwire.workers.resources import Resources
from trainwire.workers.settings import Settings, load_settings

JOB = 42
TIMING = Timing(resend_after_s=0.5, longest_backoff_s=0.3, settle_s=60)
LAUNCHED = """
import os, sys
from trainwire import Run
with Run() as run:
    run.metric(step=1, loss=0.5)
    if os.fork() == 0:
        run.log("child")
        sys.exit()
    os.wait()
print("printed")
"""


@pytest.fixture
def gateway(resources: Resources, tmp_path: Path, database_url: str, redis_url: str) -> Iterator[GatewayProcess]:
    """A gateway that requires tokens, and workers."""
    with (
        workers_running(resources.settings, tmp_path),
        GatewayProcess(tmp_path, database_url, redis_url, GATEWAY_AUTH="on") as running,
    ):
        yield running


def token_for(engine: Engine, job_id: int | None = None, job_names: str | None = None) -> str:
    """Make a trainer's token."""
    with engine.begin() as connection:
        return create_token(connection, "test", "trainer", job_id, job_names=job_names)[1]


def lines(engine: Engine) -> list[str]:
    """Return the stored lines in order."""
    found: list[str] = rows(engine, training_logs, "content")
    return found


def log_steadily(settings: TrainerSettings, disturb: Callable[[], None], at_least: int = 3000) -> list[str]:
    """Log lines while another thread disturbs; return all that were logged, after a finish that stored them."""
    disturbing = threading.Thread(target=disturb)
    logged: list[str] = []
    with Run(JOB, "digits", settings=settings) as run:
        disturbing.start()
        while len(logged) < at_least or disturbing.is_alive():
            logged.append(f"line {len(logged)}")
            run.log(logged[-1])
            run.metric(step=len(logged), loss=1.0)
            time.sleep(0.001)
        disturbing.join()
        receipt: Receipt = run.finish(timeout_s=180)
    assert receipt.unsettled == 0, receipt
    return logged


def check_all_stored(engine: Engine, logged: list[str]) -> None:
    """Assert that exactly the logged lines and points are stored, in order, and that the sum is complete."""
    assert lines(engine) == logged
    assert rows(engine, training_metrics, "step") == list(range(1, len(logged) + 1))
    with engine.connect() as connection:
        assert assess(find_positions(connection, JOB), 1, "completed").state == "complete"


def test_a_gateway_that_is_killed_again_and_again(
    resources: Resources, gateway: GatewayProcess, tmp_path: Path
) -> None:
    """After five kill -9 of the gateway each line is stored once, in order."""
    settings = settings_for(gateway.url, token_for(resources.engine, JOB), tmp_path)

    def disturb() -> None:
        for _ in range(5):
            time.sleep(0.5)
            gateway.restart()

    check_all_stored(resources.engine, log_steadily(settings, disturb))


def test_answers_that_are_lost_after_the_append(
    resources: Resources, gateway: GatewayProcess, tmp_path: Path
) -> None:
    """Connections that break while requests and answers are under way store nothing twice."""
    with TcpProxy(gateway.url) as network:
        settings = settings_for(network.url, token_for(resources.engine, JOB), tmp_path)

        def disturb() -> None:
            for number in range(40):
                time.sleep(0.05)
                if number % 2:
                    network.cut()
                    network.mend()
                else:
                    network.cut_after_bytes = network.passed_bytes + 700 * number
            network.cut_after_bytes = None
            network.mend()

        logged = log_steadily(settings, disturb)
    check_all_stored(resources.engine, logged)


def test_redis_is_away_while_the_gateway_answers(
    database_url: str, engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    """While Redis is down the gateway answers 503, and the messages are stored once it is back."""
    with EmbeddedValkey(tmp_path / "valkey") as server:
        mine = load_settings(database_url=settings.database_url.get_secret_value(), redis_url=server.url)
        with (
            workers_running(mine, tmp_path),
            GatewayProcess(tmp_path, database_url, server.url, GATEWAY_AUTH="on") as gateway,
        ):
            trainer = settings_for(gateway.url, token_for(engine, JOB), tmp_path)

            def disturb() -> None:
                time.sleep(0.5)
                for _ in range(2):
                    server.kill()
                    time.sleep(1)
                    server.start()
                    time.sleep(1)

            check_all_stored(engine, log_steadily(trainer, disturb))


def settings_for(url: str, token: str, folder: Path) -> TrainerSettings:
    """Return the settings of a trainer that sends to a gateway."""
    return TrainerSettings(url=url, token=token, timing=TIMING, spool=SpoolSettings(folder / "spool"))


def test_the_launcher_and_its_training(resources: Resources, gateway: GatewayProcess) -> None:
    """`trainwire run` needs the two variables only: its lines, its training's metrics and a fork's line arrive."""
    token = token_for(resources.engine, job_names="digits*")
    done = trainwire(gateway, token, "run", "--name", "digits-7", "--", sys.executable, "-c", LAUNCHED)
    assert done.returncode == 0, done.stderr
    assert f"{gateway.url}/#/jobs/" in done.stderr
    wait_until(lambda: sorted(lines(resources.engine)) == ["child", "printed"], "both lines")
    wait_until(lambda: one(resources.engine, training_jobs)["status"] == "completed", "the end")
    assert one(resources.engine, training_jobs)["name"] == "digits-7"
    wait_until(lambda: rows(resources.engine, training_metrics, "loss") == [0.5], "the point")


def test_what_a_refused_run_has_left_is_sent_with_another_token(
    resources: Resources, gateway: GatewayProcess, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong token is one error with the reason; the messages stay, and `spool send` delivers them."""
    began = time.monotonic()
    with Run(JOB, settings=settings_for(gateway.url, token_for(resources.engine, 7), tmp_path)) as run:
        run.log("kept")
        receipt = run.finish(timeout_s=600)
    assert time.monotonic() - began < 300, "it does not wait for a gateway that refuses it"
    assert receipt.unsettled > 0
    refusals = [record.getMessage() for record in caplog.records if "refuses" in record.getMessage()]
    assert refusals == [
        f"{gateway.url} refuses the messages of job {JOB}: the token is for job 7 only: use a token for this job; "
        "training goes on, messages are kept and not sent"
    ]
    spool = str(tmp_path / "spool")
    done = trainwire(gateway, token_for(resources.engine, JOB), "spool", "send", "--spool", spool)
    assert done.returncode == 0, done.stdout + done.stderr
    assert lines(resources.engine) == ["kept"]
    assert not json.loads(trainwire(gateway, "", "spool", "list", "--json", "--spool", spool).stdout)


def trainwire(gateway: GatewayProcess, token: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line of a machine that knows the gateway only."""
    environment: dict[str, Any] = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    return subprocess.run(
        [sys.executable, "-m", "trainwire", *arguments],
        cwd=ROOT,
        env={**environment, "TRAINWIRE_URL": gateway.url, "TRAINWIRE_TOKEN": token},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
