"""Unexpected errors of real processes arrive at a server with the protocol of Sentry, without secrets."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from sqlalchemy import text

from tests.factories import Sender, metrics
from tests.processes import ROOT, server_variables, wait_until, workers_running
from tests.webhook_receiver import Receiver
from trainwire.stack.persisted_config import free_port
from trainwire.workers.resources import Resources

SECRET = "sesame-4711"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A server that accepts every report."""
    receiver = Receiver()
    receiver.start()
    yield receiver
    receiver.stop()


@pytest.fixture
def _broken_tables(resources: Resources) -> Iterator[None]:
    """Jobs that cannot be read: an error that no part of the code expects."""
    with resources.engine.begin() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION broken() RETURNS boolean LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'a defect of a test'; END $$"
            )
        )
        connection.execute(text("INSERT INTO training_jobs (id, status) VALUES (1, 'running')"))
        connection.execute(text("ALTER TABLE training_jobs RENAME TO hidden_jobs"))
        connection.execute(text("CREATE VIEW training_jobs AS SELECT * FROM hidden_jobs WHERE broken()"))
    yield
    with resources.engine.begin() as connection:
        connection.execute(text("DROP VIEW training_jobs"))
        connection.execute(text("ALTER TABLE hidden_jobs RENAME TO training_jobs"))
        connection.execute(text("DROP FUNCTION broken()"))


def environment(resources: Resources) -> dict[str, str]:
    """Return the variables with the addresses of the stores."""
    settings = resources.settings
    return {
        **server_variables(settings),
    }


def dsn(receiver: Receiver) -> str:
    """Return the address of project 7 on the receiver."""
    return f"http://public@127.0.0.1:{receiver.port}/7"


def reports(receiver: Receiver) -> list[Any]:
    """Return the events that have arrived: the third line of an envelope."""
    bodies = [gzip.decompress(request.body) for request in receiver.requests]
    return [json.loads(body.split(b"\n")[2]) for body in bodies if b'"type":"event"' in body]


@pytest.mark.usefixtures("_broken_tables")
def test_an_error_of_a_task_is_reported(
    resources: Resources, sender: Sender, receiver: Receiver, tmp_path: Path
) -> None:
    """A worker's unexpected error is reported with task and version, and without passwords and values."""
    with workers_running(resources.settings, tmp_path, SENTRY_DSN=dsn(receiver)):
        sender.send(metrics(1, loss=4711.25))
        wait_until(lambda: reports(receiver), "a report")
    report = reports(receiver)[0]
    assert report["tags"]["process"] == "worker"
    assert report["release"].startswith("trainwire@")
    shown = json.dumps(reports(receiver))
    assert "a defect of a test" in shown
    assert "4711.25" not in shown
    assert str(resources.settings.database_url.get_secret_value()) not in shown


@pytest.mark.usefixtures("_broken_tables")
def test_an_error_of_a_request_is_reported(resources: Resources, receiver: Receiver, tmp_path: Path) -> None:
    """The gateway's unexpected error is reported, without anything of the request."""
    port = free_port()
    env = os.environ | environment(resources) | {"GATEWAY_PORT": str(port), "SENTRY_DSN": dsn(receiver)}
    with (tmp_path / "gateway.log").open("wb") as log:
        gateway = subprocess.Popen(
            [sys.executable, "-m", "trainwire.gateway"], cwd=ROOT, env=env, stdout=log, stderr=log
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _status(f"{url}/healthz") == 200, "the gateway's start", 90)
        headers = {"Authorization": f"Bearer {SECRET}", "Cookie": f"session={SECRET}", "X-Token": SECRET}
        answer = requests.get(f"{url}/jobs/1?after={SECRET}", headers=headers, timeout=60)
        assert answer.status_code >= 500, answer.text
        wait_until(lambda: reports(receiver), "a report")
    finally:
        gateway.terminate()
        gateway.wait(60)
    report = reports(receiver)[0]
    assert report["tags"]["process"] == "gateway"
    assert "a defect of a test" in json.dumps(report)
    assert SECRET not in json.dumps(report)


@pytest.mark.parametrize(("address", "expected"), [("nonsense", "SENTRY_DSN"), ("https://host/7", "SENTRY_DSN")])
def test_an_invalid_address_is_named(resources: Resources, address: str, expected: str) -> None:
    """A process with an invalid DSN ends with one sentence that names the variable."""
    done = subprocess.run(
        [sys.executable, "-m", "trainwire.workers", "sweep"],
        cwd=ROOT,
        env=os.environ | environment(resources) | {"SENTRY_DSN": address},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 78
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def _status(url: str) -> int:
    try:
        return requests.get(url, timeout=20).status_code
    except requests.RequestException:
        return 0
