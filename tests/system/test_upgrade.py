"""The previous release beside this one: its spool, its messages, its workers and gateway, and its data folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
from sqlalchemy import text

from tests.factories import one, rows
from tests.integration.gateway.feed_clients import GatewayProcess
from tests.previous_release import previous_python
from tests.processes import ROOT, wait_until, workers_running
from tests.system.test_up import Terminal, ended
from trainwire import Client
from trainwire.ingest.spool.listing import list_spool
from trainwire.schemas.tables import training_jobs, training_logs, training_metrics
from trainwire.stack.persisted_config import free_port
from trainwire.stores.postgres.completeness import assess
from trainwire.stores.postgres.source_positions import find_positions
from trainwire.workers.resources import Resources

__all__ = ["previous_python"]

STEPS = 400
TRAINING = f"""
import json, sys, time
from trainwire import Run

job, status = int(sys.argv[1]), sys.argv[2]
run = Run(job, name=f"job {{job}}", total_epochs=2, params={{"lr": 0.1}})
for step in range({STEPS}):
    run.metric(step=step, loss=1 / (1 + step))
    run.log(f"line {{step}} of {{job}}")
    time.sleep(0.002)
print("reported", flush=True)
if status == "wait":
    time.sleep(600)
receipt = run.finish(status, timeout_s=120)
print(json.dumps([receipt.produced, receipt.stored]))
"""


@pytest.fixture
def train(resources: Resources, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a training on the test's Redis with a Python: `train(python, job, status)`."""
    script = tmp_path / "train.py"
    script.write_text(TRAINING)
    started: list[subprocess.Popen[str]] = []

    def begin(python: str, job: int, status: str = "completed", **env: str) -> subprocess.Popen[str]:
        redis_url = resources.settings.redis_url.get_secret_value()
        environment = os.environ | {"REDIS_URL": redis_url, "TRAINWIRE_SETTLE_S": "120"} | env
        # Only this version is found by the folder; the previous one is installed in its environment.
        process = subprocess.Popen(
            [python, script, str(job), status],
            cwd=tmp_path,
            env=environment | ({"PYTHONPATH": str(ROOT)} if python == sys.executable else {}),
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def check_receipt(training: subprocess.Popen[str]) -> None:
    """Assert that a training ends well, and that its receipt has all of its messages as stored."""
    printed, _ = training.communicate(timeout=240)
    assert training.returncode == 0
    produced, stored = json.loads(printed.splitlines()[-1])
    assert produced == stored
    assert {"logs", "metrics", "completions"} <= produced.keys()


def check_rows(resources: Resources, *jobs: int) -> None:
    """Assert that each job has all its lines and points, each once, in order and numbered without holes."""
    lines = rows(resources.engine, training_logs, "job_id", "seq", "content")
    points = rows(resources.engine, training_metrics, "job_id", "seq", "step", "loss")
    for job in jobs:
        assert [row[1:] for row in lines if row[0] == job] == [
            (step + 1, f"line {step} of {job}") for step in range(STEPS)
        ]
        assert [row[1:] for row in points if row[0] == job and row[2] is not None] == [
            (step + 1, step, 1 / (1 + step)) for step in range(STEPS)
        ]
    with resources.engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM dead_letters")) == 0


def state_of(resources: Resources, job: int) -> str:
    """Return the state of the sum of a job."""
    with resources.engine.connect() as connection:
        found = one(resources.engine, training_jobs, id=job)
        return assess(find_positions(connection, job), found["attempt"], found["status"]).state


@pytest.mark.timeout(900)
def test_a_spool_of_the_previous_release_is_sent(
    resources: Resources, tmp_path: Path, previous_python: str, train: Callable[..., subprocess.Popen[str]]
) -> None:
    """What its killed trainer has left, this version sends: all rows once, and an inferred end."""
    training = train(previous_python, 5, "wait", REDIS_URL=f"redis://127.0.0.1:{free_port()}")
    assert training.stdout is not None
    assert training.stdout.readline() == "reported\n"
    spool = tmp_path / "spool"
    env = os.environ | {"REDIS_URL": resources.settings.redis_url.get_secret_value()}

    def of_spool(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "trainwire", "spool", *arguments]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=240)

    wait_until(lambda: of_spool("show", "5").stdout.count(" of 5") == STEPS, "its last line is on the disk", 120)
    training.kill()
    training.wait(60)
    with workers_running(resources.settings, tmp_path):
        sent = of_spool("send", "--any-server")
        assert sent.returncode == 0, sent.stderr
    check_rows(resources, 5)
    assert not list(list_spool(spool))
    assert one(resources.engine, training_jobs, id=5)["name"] == "job 5"
    with resources.engine.connect() as connection:
        found = assess(find_positions(connection, 5), 1, "lost")
    assert (found.state, found.missing, found.lost) == ("unproven", 0, 0)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("who_works", ["old", "both"])
def test_old_and_new_work_side_by_side(
    resources: Resources,
    tmp_path: Path,
    previous_python: str,
    train: Callable[..., subprocess.Popen[str]],
    who_works: str,
) -> None:
    """On the newer tables, old workers store what trainers of both releases send, and both workers those of old.

    Trainers are upgraded last: while they know from newer workers that these are behind, they join messages, and
    an older worker refuses these (docs/deploy.md).
    """
    with ExitStack() as running:
        for version, python in {"old": previous_python, "new": None}.items():
            if who_works in {version, "both"}:
                folder = tmp_path / version
                folder.mkdir()
                running.enter_context(workers_running(resources.settings, folder, python=python))
        trainings = {job: train(previous_python, job) for job in (1, 2)}
        if who_works == "old":
            trainings |= {3: train(sys.executable, 3), 4: train(sys.executable, 4, "preempted")}
        for training in trainings.values():
            check_receipt(training)
        check_rows(resources, *trainings)
        assert {state_of(resources, job) for job in trainings} == {"complete"}
        statuses = dict(rows(resources.engine, training_jobs, "id", "status", order=["id"]))
        assert statuses.pop(4, "failed") == "failed"  # an old worker does not know the status
        assert set(statuses.values()) == {"completed"}


@pytest.mark.timeout(900)
def test_an_old_gateway_serves_on_the_newer_tables(
    resources: Resources, tmp_path: Path, previous_python: str, train: Callable[..., subprocess.Popen[str]]
) -> None:
    """Gateways of both releases follow a job to its end; the old one reads a job whose status it does not know.

    It does not pass on the events of such a status, so gateways are upgraded before trainers (docs/deploy.md).
    """
    addresses = resources.settings.database_url.get_secret_value(), resources.settings.redis_url.get_secret_value()
    old_folder = tmp_path / "old"
    old_folder.mkdir()
    with (
        workers_running(resources.settings, tmp_path),
        GatewayProcess(old_folder, *addresses, python=previous_python) as old,
        GatewayProcess(tmp_path, *addresses) as new,
    ):
        training = train(sys.executable, 6)
        wait_until(
            lambda: rows(resources.engine, training_jobs, "id", order=["id"]) == [6], "the job is there", 120
        )
        for gateway in (old, new):
            with Client(gateway.url) as client:
                events = list(client.job(6).follow())
            seqs = [line["seq"] for event in events for line in event.get("logs") or event.get("lines") or ()]
            assert seqs == sorted(set(seqs)) == list(range(1, STEPS + 1))
        check_receipt(training)
        check_receipt(train(sys.executable, 7, "preempted"))
        for gateway in (old, new):
            assert requests.get(f"{gateway.url}/readyz", timeout=60).status_code == 200
            assert [found["status"] for found in _items(gateway, "/jobs")] == ["preempted", "completed"]
            assert len(_items(gateway, "/jobs/7/logs?limit=1000")) == STEPS
            with Client(gateway.url) as client:
                assert client.job(7).status == "preempted"
                found = client.job(7).completeness()
                assert found.stored == found.produced
                # The old one does not know that this status is an end.
                assert found.state == ("complete" if gateway is new else "open")


def _items(gateway: GatewayProcess, path: str) -> list[dict[str, Any]]:
    answer = requests.get(gateway.url + path, timeout=60)
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


def is_complete(terminal: Terminal, job: int) -> bool:
    """Return whether `trainwire status` shows that all messages of a job are stored."""
    return "complete: " in terminal.run("status", str(job)).stdout


@pytest.mark.timeout(900)
def test_a_data_folder_of_the_previous_release_opens(tmp_path: Path, previous_python: str) -> None:
    """The tables of its `trainwire up` are migrated by this one, all jobs are there, and new ones are added."""
    script = tmp_path / "train.py"
    script.write_text(TRAINING)
    with ended(Terminal(tmp_path)) as terminal:
        for python, cwd, job in ((previous_python, tmp_path, 1), (sys.executable, ROOT, 2)):
            terminal.python, terminal.cwd = python, cwd
            up = terminal.up("--no-flower", "--concurrency", "1")
            done = terminal.run("run", "--job-id", str(job), "--", str(python), str(script), str(job), "completed")
            assert done.returncode == 0, done.stderr
            for known in range(1, job + 1):
                terminal.wait_for(partial(is_complete, terminal, known), 120)
                printed = terminal.run("logs", str(known), "--limit", "10000").stdout.splitlines()
                assert sum(f" of {known}" in line for line in printed) == STEPS
            up.send_signal(signal.SIGINT)
            assert up.wait(120) == 0, terminal.output()
