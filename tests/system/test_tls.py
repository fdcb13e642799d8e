"""A trainer and workers as processes that reach Redis, Postgres, Loki and S3 only over TLS."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.factories import rows
from tests.processes import ROOT, START_TIMEOUT_S, Process, wait_until, workers_running
from tests.s3 import s3_client, s3_environment, s3_server
from tests.tls_servers import Tls, over
from tests.twins.loki import LokiTwin
from trainwire.cli.worker_queues import answering_workers
from trainwire.schemas.keys import INGEST_QUEUE
from trainwire.schemas.tables import training_checkpoints, training_jobs, training_logs
from trainwire.stack.persisted_config import usable_port
from trainwire.workers.resources import Resources
from trainwire.workers.settings import Settings, load_settings

JOB = 42
LINES = 500
TRAINING = f"""
from trainwire import Run
with Run({JOB}, name="secret") as run:
    for number in range({LINES}):
        run.log(f"line {{number}}")
    run.metric(loss=0.0)
    run.checkpoint("last.pt", kind="last")
"""


def secure(tls: Tls, resources: Resources, ca: Path) -> Settings:
    """Return the settings of workers for the test servers behind TLS, trusted by this CA."""
    redis_url = resources.settings.redis_url.get_secret_value()
    database_url = resources.settings.database_url.get_secret_value()
    return load_settings(
        redis_url=over(tls.in_front_of(redis_url), redis_url, "rediss", ssl_ca_certs=ca),
        database_url=over(
            tls.in_front_of(database_url), database_url, "postgresql", sslmode="verify-full", sslrootcert=ca
        ),
    )


def train(settings: Settings, folder: Path, **env: str) -> str:
    """Run a training in a process of its own, and return its stderr."""
    (folder / "last.pt").write_bytes(b"weights")
    done = subprocess.run(
        [sys.executable, "-c", TRAINING],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "REDIS_URL": settings.redis_url.get_secret_value(), **env},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_all_of_it_over_tls(resources: Resources, engine: Engine, tls: Tls, tmp_path: Path) -> None:
    """Over TLS every line is stored and in Loki, the checkpoint verified, and workers and Flower reach Redis."""
    settings = secure(tls, resources, tls.ca)
    with LokiTwin() as twin, s3_server() as s3_url:
        s3_client(s3_url).create_bucket(Bucket="models")
        loki, s3 = tls.in_front_of(twin.url), tls.in_front_of(s3_url)
        files = s3_environment(f"https://127.0.0.1:{s3.port}") | {
            "AWS_CA_BUNDLE": str(tls.ca),
            "TRAINWIRE_CHECKPOINT_BUCKET": "models",
        }
        env = files | {"LOKI_URL": f"https://127.0.0.1:{loki.port}", "LOKI_CA_FILE": str(tls.ca)}
        with workers_running(settings, tmp_path, workers=1, beat=True, **env) as (worker,):
            stderr = train(settings, tmp_path, **files)
            assert "cannot" not in stderr
            wanted = [f"line {number}" for number in range(LINES)]
            wait_until(
                lambda: rows(engine, training_jobs, "status", order=["id"]) == ["completed"], "the end", 120
            )
            wait_until(lambda: len(rows(engine, training_logs, "seq")) == LINES, "all rows", 120)
            assert rows(engine, training_logs, "content") == wanted
            wait_until(lambda: len(twin.lines(JOB)) == LINES, "all lines in Loki", 120)
            assert [line.line for line in twin.lines(JOB)] == wanted
            wait_until(lambda: any(rows(engine, training_checkpoints, "verified_at")), "verification", 120)
            (uri,) = rows(engine, training_checkpoints, "uri")
            assert uri.startswith("s3://models/checkpoints/42/")
            assert loki.handshakes
            assert s3.handshakes
            wait_until(lambda: answering_workers(settings, 5), "an answer of the worker", 120)
            (answering,) = answering_workers(settings, 5)
            assert answering.startswith("w0@")
            assert "insecure" not in worker.output  # kombu's warning when it verifies no certificate
            assert flower_sees_queues(settings, tmp_path)


def flower_sees_queues(settings: Settings, folder: Path) -> bool:
    """Return whether Flower's page shows our queues, which it reads from Redis."""
    port = usable_port(folder, "flower")
    flower = Process(settings, folder / "flower.log", "flower", "--port", str(port)).start()

    def shows() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/broker", timeout=20) as page:
                return INGEST_QUEUE in page.read().decode()
        except OSError:
            return False

    try:
        wait_until(shows, "Flower's look into Redis", 120)
    finally:
        flower.stop()
    return "Unable to get queues" not in flower.output


@pytest.mark.parametrize("store", ["redis", "postgres"])
def test_a_worker_without_the_ca_ends_at_once(store: str, resources: Resources, tls: Tls, tmp_path: Path) -> None:
    """Its last line names the host, the reason and the setting; exit code 78 is for a process supervisor."""
    right, wrong = secure(tls, resources, tls.ca), secure(tls, resources, tls.stranger)
    name = {"redis": "redis_url", "postgres": "database_url"}[store]
    urls = {field: getattr(right, field).get_secret_value() for field in ("redis_url", "database_url")}
    settings = load_settings(**urls | {name: getattr(wrong, name).get_secret_value()})
    worker = Process(settings, tmp_path / "worker.log", "worker").start()
    assert worker.process.wait(START_TIMEOUT_S) == 78
    last = worker.output.strip().splitlines()[-1]
    assert last.startswith(f"trainwire worker: {store.capitalize()}: ")
    assert "127.0.0.1" in last
    assert f"name the file of its CA in {name.upper()}" in last


def test_lines_wait_for_a_loki_that_is_not_trusted(
    resources: Resources, engine: Engine, tls: Tls, tmp_path: Path
) -> None:
    """With another CA rows are stored and not delivered; workers with the right CA deliver all of them."""
    with LokiTwin() as twin:
        url = f"https://127.0.0.1:{tls.in_front_of(twin.url).port}"
        env = {"LOKI_URL": url, "DELIVERY_BACKOFF_CAP_S": "0.5"}
        (tmp_path / "first").mkdir()
        wrong, right = ({**env, "LOKI_CA_FILE": str(ca)} for ca in (tls.stranger, tls.ca))
        with workers_running(resources.settings, tmp_path / "first", workers=1, beat=True, **wrong) as (worker,):
            train(resources.settings, tmp_path)
            wait_until(lambda: len(rows(engine, training_logs, "seq")) == LINES, "all rows", 120)
            wait_until(lambda: "name the file of its CA with LOKI_CA_FILE" in worker.output, "the refusal", 120)
            assert twin.lines() == []
        with workers_running(resources.settings, tmp_path, workers=1, beat=True, **right):
            wait_until(lambda: len(twin.lines(JOB)) == LINES, "all lines in Loki", 120)
