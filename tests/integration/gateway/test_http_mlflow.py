"""A job's run in MLflow, over HTTP, from a real server."""

from __future__ import annotations

from typing import Final

from stores.mlflow_http import MlflowApi
from tests.factories import Sender, drain, logs
from tests.gateway_server import GatewayServer, gateway_settings
from tests.mlflow_server import MlflowServer
from workers.resources import Resources

JOB: Final = 10_001
AT_MS: Final = 1_790_000_000_000


def logged_run(api: MlflowApi) -> str:
    """Log a run as a trainer of the job would; return its id."""
    experiment = api.post("experiments/create", name=f"gateway-{JOB}")["experiment_id"]
    tags = [{"key": "job_id", "value": str(JOB)}]
    run = api.post("runs/create", experiment_id=experiment, run_name="digits", start_time=AT_MS, tags=tags)
    run_id: str = run["run"]["info"]["run_id"]
    for step, value in enumerate((0.5, 0.0)):
        api.post("runs/log-metric", run_id=run_id, key="loss", step=step, value=value, timestamp=AT_MS + step)
    return run_id


def test_a_run_is_shown_in_short_and_point_by_point(
    database_url: str, redis_url: str, resources: Resources, sender: Sender, mlflow_server: MlflowServer
) -> None:
    """The run that is tagged with the job is found; its metrics come as they are, 0.0 as a value."""
    sender.send(logs("a"), job=JOB)
    drain(resources, job=JOB)
    settings = gateway_settings(database_url, redis_url, mlflow_tracking_uri=mlflow_server.url)
    with GatewayServer(settings) as server:
        none_yet = server.get(f"/jobs/{JOB}/mlflow/summary", status=404)
        assert none_yet["detail"] == f"MLflow has no run of job {JOB} yet"
        run_id = logged_run(mlflow_server.api)
        summary = server.get(f"/jobs/{JOB}/mlflow/summary")
        found = server.get(f"/jobs/{JOB}/mlflow/metrics?names=loss,unknown")
        assert server.get(f"/jobs/{JOB}/mlflow/summary?attempt=9", status=404)["status"] == 404
    assert (summary["run_id"], summary["name"], summary["is_mirror"]) == (run_id, "digits", False)
    assert summary["metrics"] == {"loss": {"points": 2, "last": 0.0, "lowest": 0.0, "highest": 0.5}}
    assert summary["url"].endswith(f"/runs/{run_id}")
    assert [point["value"] for point in found["metrics"]["loss"]] == [0.5, 0.0]
