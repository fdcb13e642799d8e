"""Measures metric values/s into a real MLflow server: from its own client, and by deliveries from Postgres."""

from __future__ import annotations

import json
import sqlite3
import tempfile
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric
from sqlalchemy import text

from tests.mlflow_server import MlflowServer
from trainwire.workers.resources import Resources
from trainwire.workers.sinks.deliver import Delivery
from trainwire.workers.sinks.mlflow.backlog import MetricBacklog
from trainwire.workers.sinks.mlflow.plugin import mlflow_api
from trainwire.workers.sinks.mlflow.sink import MlflowSink

NAMES = 10
"""Number of metrics per point."""
CHART_POINTS = 1000
"""Maximum number of points of a chart, the same as in trainwire's responses."""
BROWSER_CONNECTIONS = 6

_COPY_METRIC = (
    "INSERT INTO metrics (key, value, timestamp, step, is_nan, run_uuid) VALUES (?, ?, ?, ?, 0, ?) "
    "ON CONFLICT DO NOTHING"
)
_FILL_JOBS = text(
    "INSERT INTO training_jobs (id, status, last_metric_seq) "
    "SELECT job, 'running', :points FROM generate_series(1, :jobs) job"
)
_FILL_ATTEMPTS = text(
    "INSERT INTO training_attempts (job_id, attempt, status, changes) "
    "SELECT job, 1, 'running', 1 FROM generate_series(1, :jobs) job"
)
_FILL_METRICS = text(
    "INSERT INTO training_metrics (job_id, seq, logged_at, attempt, source, step, extra_metrics) "
    "SELECT job, point, now() + point * interval '1 ms', 1, '0-bench', point, ("
    "SELECT jsonb_object_agg('metric' || name, name * 1.5 + point) FROM generate_series(1, :names) name) "
    "FROM generate_series(1, :jobs) job, generate_series(1, :points) point"
)


@contextmanager
def server() -> Iterator[MlflowServer]:
    """Start an MLflow server on SQLite with one worker process; yield it."""
    with tempfile.TemporaryDirectory(prefix="trainwire-bench-") as folder:
        target = MlflowServer(Path(folder)).start()
        try:
            yield target
        finally:
            target.kill()


@contextmanager
def server_with_points(resources: Resources) -> Iterator[tuple[MlflowServer, str]]:
    """Start an MLflow server with the points of job 1.

    Yield it with the id of its run in MLflow.

    The points are read from Postgres and inserted directly into MLflow's SQLite tables, because its client would
    take many times as long.
    """
    with tempfile.TemporaryDirectory(prefix="trainwire-bench-") as folder:
        target = MlflowServer(Path(folder)).start()
        try:
            run_id = MlflowClient(target.url).create_run("0").info.run_id
            with closing(sqlite3.connect(f"{folder}/mlflow.db")) as database, database:
                database.executemany(_COPY_METRIC, _points_of_job(resources, run_id))
            yield target, run_id
        finally:
            target.kill()


def _points_of_job(resources: Resources, run_id: str) -> Iterator[tuple[str, float, int, int, str]]:
    rows = text("SELECT step, extract(epoch FROM logged_at), extra_metrics FROM training_metrics WHERE job_id = 1")
    with resources.engine.connect().execution_options(yield_per=1000) as connection:
        for step, at_s, values in connection.execute(rows):
            for name, value in values.items():
                yield name, value, int(at_s * 1000), step, run_id


def charts_s(target: MlflowServer, run_id: str, names: Sequence[str], steps: tuple[int, int] | None) -> float:
    """Return the seconds to load charts of these metrics like MLflow's page: one request each, six at a time."""
    query = {"run_ids": run_id, "max_results": str(CHART_POINTS)}
    if steps is not None:
        query |= {"start_step": str(steps[0]), "end_step": str(steps[1])}
    path = f"{target.url}/ajax-api/2.0/mlflow/metrics/get-history-bulk-interval"

    def read(name: str) -> int:
        with urllib.request.urlopen(f"{path}?{urllib.parse.urlencode(query | {'metric_key': name})}") as answer:
            return len(json.loads(answer.read())["metrics"])

    began = time.perf_counter()
    with ThreadPoolExecutor(BROWSER_CONNECTIONS) as pool:
        assert all(pool.map(read, names))
    return time.perf_counter() - began


def log_batch(target: MlflowServer, points: int, calls: int) -> float:
    """Return the values/s of MLflow's own client with `points` points of all metrics per call."""
    client = MlflowClient(target.url)
    run_id = client.create_run("0").info.run_id
    began = time.perf_counter()
    for call in range(calls):
        now = int(time.time() * 1000)
        steps = range(call * points, (call + 1) * points)
        metrics = [
            Metric(f"metric{name}", name * 1.5 + step, now, step) for name in range(NAMES) for step in steps
        ]
        client.log_batch(run_id, metrics=metrics)
    return calls * points * NAMES / (time.perf_counter() - began)


def drain_mirror(resources: Resources, target: MlflowServer, jobs: int, values: int) -> float:
    """Return the values/s of deliveries to MLflow of a backlog in Postgres, with `values` values per job."""
    points = values // NAMES
    with resources.engine.begin() as connection:
        for statement in (_FILL_JOBS, _FILL_ATTEMPTS, _FILL_METRICS):
            connection.execute(statement, {"jobs": jobs, "points": points, "names": NAMES})
    sink = MlflowSink(mlflow_api(target.url), f"bench-{uuid.uuid4()}")
    began = time.perf_counter()
    Delivery(resources.engine, MetricBacklog(sink.name), sink, slice_s=600).run()
    seconds = time.perf_counter() - began
    with resources.engine.connect() as connection:
        behind = connection.execute(text("SELECT sum(last_metric_seq) FROM training_jobs")).scalar_one()
        confirmed = connection.execute(text("SELECT sum(confirmed_seq) FROM delivery_cursors")).scalar_one()
    assert behind == confirmed == jobs * points
    return jobs * values / seconds
