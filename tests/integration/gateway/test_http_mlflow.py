"""A job's run in MLflow, over HTTP, from a real server."""

from __future__ import annotations

from typing import Final

from tests.factories import Sender, drain, logs
from tests.gateway_server import GatewayServer, gateway_settings
from tests.mlflow_server import MlflowServer
from trainwire.stores.mlflow.http import MlflowApi
from trainwire.workers.resources import Resources

JOB: Final = 10_001
AT_MS: Final = 1_790_000_000_000


def logged_run(api: MlflowApi, job_id: int = JOB) -> str:
    """Log a run as a trainer of the job would; return its id."""
    experiment = api.post("experiments/create", name=f"gateway-{job_id}")["experiment_id"]
    tags = [{"key": "job_id", "value": str(job_id)}]
    run = api.post("runs/create", experiment_id=experiment, run_name="digits", start_time=AT_MS, tags=tags)
    run_id: str = run["run"]["info"]["run_id"]
    log_metric(api, run_id, "loss", 0.5, 0.0)
    return run_id


def log_metric(api: MlflowApi, run_id: str, key: str, *values: float) -> None:
    """Log the values of a metric, one a step."""
    for step, value in enumerate(values):
        api.post("runs/log-metric", run_id=run_id, key=key, step=step, value=value, timestamp=AT_MS + step)


def test_a_run_is_shown_in_short_and_point_by_point(
    database_url: str, redis_url: str, resources: Resources, sender: Sender, mlflow_server: MlflowServer
) -> None:
    """The run that is tagged with the job is found, with all its values, 0.0 included."""
    sender.send(logs("a"), job=JOB)
    drain(resources, job=JOB)
    settings = gateway_settings(database_url, redis_url, mlflow_tracking_uri=mlflow_server.url)
    with GatewayServer(settings) as server:
        none_yet = server.get(f"/jobs/{JOB}/mlflow/summary", status=404)
        assert none_yet["detail"] == f"job {JOB} has no run in MLflow yet"
        run_id = logged_run(mlflow_server.api)
        summary = server.get(f"/jobs/{JOB}/mlflow/summary")
        found = server.get(f"/jobs/{JOB}/mlflow/metrics?names=loss,unknown")
        assert server.get(f"/jobs/{JOB}/mlflow/summary?attempt=9", status=404)["status"] == 404
    assert (summary["run_id"], summary["name"], summary["is_mirror"]) == (run_id, "digits", False)
    assert summary["metrics"] == {"loss": {"points": 2, "last": 0.0, "lowest": 0.0, "highest": 0.5}}
    assert summary["url"].endswith(f"/runs/{run_id}")
    assert [point["value"] for point in found["metrics"]["loss"]] == [0.5, 0.0]


def test_points_come_page_by_page(
    database_url: str, redis_url: str, resources: Resources, sender: Sender, mlflow_server: MlflowServer
) -> None:
    """Each page has a limited number of points, and the cursors lead to each point once."""
    job = JOB + 1
    sender.send(logs("a"), job=job)
    drain(resources, job=job)
    run_id = logged_run(mlflow_server.api, job)
    logged = {"acc": [0.1, 0.2, 0.3, 0.4, 0.5], "loss": [0.5, 0.0], "lr": [0.01]}
    log_metric(mlflow_server.api, run_id, "acc", *logged["acc"])
    log_metric(mlflow_server.api, run_id, "lr", *logged["lr"])
    settings = gateway_settings(database_url, redis_url, mlflow_tracking_uri=mlflow_server.url)
    with GatewayServer(settings) as server:
        path = f"/jobs/{job}/mlflow/metrics"
        for limit, pages in ((1, 8), (3, 3), (1000, 1)):
            came, sizes = follow(server, f"{path}?limit={limit}")
            assert (came, len(sizes)) == (logged, pages)
            assert max(sizes) <= limit
        assert follow(server, f"{path}?names=lr,acc&limit=2")[0] == {"lr": logged["lr"], "acc": logged["acc"]}
        first = server.get(f"{path}?limit=2")
        assert first["more_metrics"] == 2
        for wrong in (f"cursor={first['next']}&names=lr", "cursor=nonsense", "cursor=%22%22", "limit=0"):
            assert server.get(f"{path}?{wrong}", status=422)["type"].endswith("wrong-value")


def follow(server: GatewayServer, path: str) -> tuple[dict[str, list[float]], list[int]]:
    """Return the values of all pages from this one on, and how many each page has."""
    came: dict[str, list[float]] = {}
    sizes = []
    cursor = ""
    while True:
        page = server.get(path + cursor)
        for name, points in page["metrics"].items():
            came.setdefault(name, []).extend(point["value"] for point in points)
        sizes.append(sum(map(len, page["metrics"].values())))
        if page["next"] is None:
            return came, sizes
        cursor = f"&cursor={page['next']}"
