"""Real workers mirror to a real MLflow while either of them is killed, hangs or is slow."""

from __future__ import annotations

import random
import socket
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.factories import NOW_NS, Sender, completion, logs, rows
from tests.mlflow_server import MlflowServer
from tests.processes import START_TIMEOUT_S, Process, kill_one, stop_all, wait_until, workers_running
from tests.twins.loki import LokiTwin
from trainwire.schemas.keys import BEAT_QUEUE, INGEST_QUEUE
from trainwire.schemas.tables import delivery_cursors, training_attempts, training_jobs, training_metrics
from trainwire.schemas.wire.messages import Metrics, Point
from trainwire.stores.mlflow.runs import get_run, get_run_metrics
from trainwire.workers.resources import Resources

JOBS = range(1, 7)
ROUNDS = 6
POINTS = 30
NOT_HELD_UP_S = 25
"""Less than a worker waits for an answer of MLflow, which is 30 s."""


def points(number: int) -> Metrics:
    """Return a job's points of a round."""
    return Metrics(
        points=[
            Point(ts=NOW_NS + step * 10**6, step=step, values={"loss": 1.0 / (step + 1), "odd@name": float("nan")})
            for step in range(number * POINTS, (number + 1) * POINTS)
        ],
        params={"lr": 0.1},
    )


def run_ids(resources: Resources) -> list[str | None]:
    """Return the ids of the runs in the jobs' rows."""
    found: list[str | None] = rows(resources.engine, training_jobs, "mlflow_run_id", order=["id"])
    return found


def is_all_mirrored(resources: Resources) -> bool:
    """Return whether all jobs have ended, and MLflow has all their rows and all changes of their attempts."""
    if set(rows(resources.engine, training_jobs, "status", order=["id"])) != {"completed"}:
        return False
    cursors = rows(resources.engine, delivery_cursors, "sink", "confirmed_seq", order=["job_id"])
    confirmed = [seq for sink, seq in cursors if sink == "mlflow"]
    changed = rows(resources.engine, training_attempts, "changes", "mirrored_changes", order=["job_id"])
    return confirmed == [ROUNDS * POINTS] * len(JOBS) and all(changes == mirrored for changes, mirrored in changed)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[MlflowServer]:
    """An MLflow server that the test may kill."""
    server = MlflowServer(tmp_path).start()
    yield server
    server.kill()


def test_every_value_reaches_mlflow_once_through_all_trouble(
    resources: Resources, sender: Sender, tmp_path: Path, own_server: MlflowServer
) -> None:
    """While workers and MLflow are killed repeatedly, each job gets one run with every point once, ended last."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    experiment = f"test-{uuid.uuid4()}"
    with workers_running(
        resources.settings,
        tmp_path,
        workers=2,
        MLFLOW_TRACKING_URI=own_server.url,
        MLFLOW_EXPERIMENT=experiment,
        DELIVERY_BACKOFF_CAP_S="0.5",
    ) as workers:
        for number in range(ROUNDS):
            for job in JOBS:
                sender.send(points(number), job=job)
            if number == 2:
                own_server.kill()
            if number == 3:
                own_server.start()
            time.sleep(chance.uniform(0.5, 2.5))
            kill_one(workers, chance)
        for job in JOBS:
            sender.send(completion(produced={"metrics": ROUNDS}), job=job)
        wait_until(partial(is_all_mirrored, resources), "all of it in MLflow", 240)
    api = own_server.api
    found = api.get("experiments/get-by-name", experiment_name=experiment)["experiment"]
    runs = api.post("runs/search", experiment_ids=[found["experiment_id"]], max_results=100)["runs"]
    assert sorted(run["info"]["run_id"] for run in runs) == sorted(str(run_id) for run_id in run_ids(resources))
    for run_id in run_ids(resources):
        run = get_run(api, str(run_id))
        assert run is not None
        assert (run.status, run.params) == ("FINISHED", {"lr": "0.1"})
        for history in get_run_metrics(api, run.run_id, run.metrics).values():
            assert [point.step for point in history] == list(range(ROUNDS * POINTS))
        assert len(run.metrics) == 2


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that accepts connections and never answers; yields its address."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_an_mlflow_that_hangs_holds_up_neither_the_store_nor_loki(
    resources: Resources, sender: Sender, tmp_path: Path, silent_server: str
) -> None:
    """With the workers of `trainwire up`, a hanging MLflow delays neither rows in Postgres nor lines in Loki."""
    with LokiTwin() as twin:
        env = {"MLFLOW_TRACKING_URI": silent_server, "LOKI_URL": twin.url}
        queues = {"store": f"{INGEST_QUEUE},{BEAT_QUEUE}", "loki": "deliver", "mlflow": "deliver-mlflow"}
        options = {name: ["--name", name, "--queues", of, "--concurrency", "1"] for name, of in queues.items()}
        workers = [
            Process(resources.settings, tmp_path / name, "worker", *of, **env) for name, of in options.items()
        ]
        beat = Process(resources.settings, tmp_path / "beat", "beat", **env)
        try:
            for process in [*workers, beat]:
                process.start()
            for process in workers:
                wait_until(process.is_ready, "the worker's start", START_TIMEOUT_S)
            for number in range(20):
                sender.send(points(number))
                sender.send(logs(f"line {number}", ts=time.time_ns()))
                stored = (number + 1) * POINTS
                wait_until(partial(has_rows, resources, stored), "metrics in Postgres", NOT_HELD_UP_S)
                wait_until(partial(has_lines, twin, number + 1), "the line in Loki", NOT_HELD_UP_S)
        finally:
            stop_all([*workers, beat])


def has_rows(resources: Resources, count: int) -> bool:
    """Return whether Postgres has that many points."""
    return len(rows(resources.engine, training_metrics, "seq")) == count


def has_lines(twin: LokiTwin, count: int) -> bool:
    """Return whether Loki has that many lines."""
    return len(twin.lines()) == count
