"""Exports to an MLflow server: equal histories, once, with a receipt of what was read back."""

from __future__ import annotations

import json
import math
import uuid
from typing import Any

import pytest

from tests.factories import NOW_NS, Sender, checkpoint, completion, drain, logs
from tests.integration.cli.conftest import Trainwire
from tests.integration.cli.test_import import make_run
from tests.mlflow_server import MlflowServer
from trainwire.cli.transfer.exports import mlflow_export
from trainwire.schemas.keys import KINDS
from trainwire.schemas.wire.messages import Metrics, Point
from trainwire.stores.mlflow.http import MlflowUnavailable
from trainwire.stores.mlflow.runs import MlflowRun, get_run, get_run_metrics
from trainwire.workers.resources import Resources
from trainwire.workers.sinks.mlflow import rules
from trainwire.workers.sinks.mlflow.run import RunMirror

MS = 1_000_000
History = dict[str, list[tuple[int, int, str]]]


@pytest.fixture
def experiment() -> str:
    """Give the name of an experiment of this test's own."""
    return f"export-{uuid.uuid4()}"


@pytest.fixture
def job(resources: Resources, sender: Sender) -> int:
    """A finished job with odd names and values, and two ranks."""
    points = [Point(ts=NOW_NS + step * MS, step=step, values={"loss": step / 3}) for step in range(2500)]
    points[1].values |= {"top@1": math.inf, "f1": math.nan}
    points.append(points[7])
    params = {"lr": 0.1, "long": "x" * 7000, "layers": [8, 8]}
    sender.send(Metrics(points=points, started_at=NOW_NS, name="digits", params=params, tags={"team": "vision"}))
    other = Metrics(points=[Point(ts=NOW_NS, epoch=2, values={"acc": 0.5})], started_at=NOW_NS, rank=3)
    sender.send(other, source="3-b")
    sender.send(logs("one", "two"))
    sender.send(checkpoint(kind="epoch", epoch=1, uri="s3://bucket/epoch-1.pt"))
    sender.send(checkpoint(kind="best", epoch=2, uri="s3://bucket/best.pt"))
    sender.send(completion())
    for kind in KINDS:
        drain(resources, kind)
    return 1


def export(connected: Trainwire, server: MlflowServer, name: str, *jobs: str, code: int = 0) -> dict[str, Any]:
    """Run an export and return its receipt."""
    done = connected("export", *jobs, "--format", "mlflow", "--to", server.url, "--experiment", name, "--json")
    assert done.code == code, done.err
    receipt: dict[str, Any] = json.loads(done.out)
    for kind in ("points", "params", "tags", "checkpoints", "lines"):
        count = receipt[kind]
        assert count["source"] == count["stored"] + sum(count["skipped"].values()) + count["missing"]
    return receipt


def history(server: MlflowServer, run_id: str) -> History:
    """Return all points of a run, as time, step and value."""
    run = found(server, run_id)
    return {
        name: sorted((point.ts_ms, point.step, repr(point.value)) for point in points)
        for name, points in get_run_metrics(server.api, run_id, run.metrics).items()
    }


def found(server: MlflowServer, run_id: str) -> MlflowRun:
    """Return a run that exists."""
    run = get_run(server.api, run_id)
    assert run is not None
    return run


def test_a_job_becomes_a_run_once(
    connected: Trainwire, mlflow_server: MlflowServer, experiment: str, job: int
) -> None:
    """Points, params, tags, checkpoints, name and end are there; a second export sends nothing."""
    receipt = export(connected, mlflow_server, experiment, str(job))
    (run,) = receipt["runs"]
    assert (receipt["points"]["source"], receipt["points"]["missing"]) == (2504, 0)
    assert receipt["points"]["skipped"] == {mlflow_export.EQUAL: 1}
    assert receipt["lines"]["skipped"] == {mlflow_export.NO_LINES: 2}
    assert (receipt["checkpoints"]["stored"], receipt["params"]["stored"], run["sent"]) == (2, 3, 2503)
    stored = history(mlflow_server, run["run_id"])
    assert stored["loss"] == sorted((NOW_NS // MS + step, step, repr(step / 3)) for step in range(2500))
    assert stored["rank_3/accuracy"] == [(NOW_NS // MS, 2, "0.5")]
    assert stored["f1"] == [(NOW_NS // MS + 1, 1, "nan")]
    assert {name for name in run["notes"] if name.startswith("metric")} == {"metric top@1"}
    assert "infinities" in run["notes"]
    assert "7,000" in run["notes"]["param long"]
    made = found(mlflow_server, run["run_id"])
    assert (made.name, made.status, made.params["lr"], made.tags["team"]) == (
        "digits",
        "FINISHED",
        "0.1",
        "vision",
    )
    assert made.tags["checkpoint/best-epoch2"] == "s3://bucket/best.pt"
    again = export(connected, mlflow_server, experiment, "digits")
    assert again["runs"] == [{**run, "sent": 0}]
    assert again["points"] == receipt["points"]
    assert history(mlflow_server, run["run_id"]) == stored


def test_an_interrupted_export_continues(
    connected: Trainwire,
    mlflow_server: MlflowServer,
    experiment: str,
    job: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error names the remedy; the next export sends only the rest."""
    requests = iter(range(2))
    log = RunMirror.log

    def some(mirror: RunMirror, metrics: Any) -> Any:
        if next(requests, None) is None:
            raise MlflowUnavailable("MLflow at 127.0.0.1:5000 does not answer: ConnectTimeout")
        return log(mirror, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(RunMirror, "log", some)
        done = connected(
            "export", str(job), "--format", "mlflow", "--to", mlflow_server.url, "--experiment", experiment
        )
    assert done.code == 1
    assert "it continues where it ended" in done.err
    receipt = export(connected, mlflow_server, experiment, str(job))
    assert (receipt["runs"][0]["sent"], receipt["points"]["missing"]) == (503, 0)


@pytest.mark.usefixtures("workers")
def test_a_run_that_was_imported_comes_back_equal(
    connected: Trainwire, mlflow_server: MlflowServer, experiment: str
) -> None:
    """From MLflow to trainwire and back, each history, parameter, status, name and time is equal."""
    source = mlflow_server.api.post("experiments/create", name=f"from-{experiment}")["experiment_id"]
    ids = {status: make_run(mlflow_server, source, status) for status in ("FINISHED", "FAILED")}
    done = connected("import", "mlflow", mlflow_server.url, "--experiment", f"from-{experiment}", "--json")
    jobs = [str(run["job_id"]) for run in json.loads(done.out)["imported"]]
    receipt = export(connected, mlflow_server, experiment, *jobs)
    assert receipt["points"]["stored"] == receipt["points"]["source"] == 2 * 1203
    for run in receipt["runs"]:
        before, after = found(mlflow_server, ids[run["name"]]), found(mlflow_server, run["run_id"])
        assert history(mlflow_server, after.run_id) == history(mlflow_server, before.run_id)
        assert (after.name, after.status, after.started_at, after.ended_at, after.params) == (
            before.name, before.status, before.started_at, before.ended_at, before.params,
        )  # fmt: skip
        assert after.tags["team"] == "vision"


def test_refused_points_are_named(
    connected: Trainwire,
    mlflow_server: MlflowServer,
    experiment: str,
    job: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A point that MLflow refuses is counted, with the name and MLflow's reason; the others are stored."""
    monkeypatch.setattr(rules, "safe_name", lambda name: name)
    receipt = export(connected, mlflow_server, experiment, str(job))
    assert receipt["points"]["skipped"] == {mlflow_export.EQUAL: 1, mlflow_export.REFUSED: 1}
    (run,) = receipt["runs"]
    assert run["notes"]["metric top@1"].startswith("is refused by MLflow: ")
    assert run["sent"] == receipt["points"]["stored"] == 2502


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--format", "mlflow"], "--to URI"),
        (["--to", "http://localhost:5000"], "go together"),
        (["--format", "mlflow", "--to", "mlruns"], "mlflow server"),
        (["--format", "mlflow", "--to", "http://localhost:5000", "-o", "x"], "--output"),
        (["--format", "mlflow", "--to", "http://127.0.0.1:9"], "does not answer"),
    ],
)
def test_wrong_arguments_are_named(connected: Trainwire, job: int, arguments: list[str], shown: str) -> None:
    """Each error names the option or the address, and the remedy."""
    done = connected("export", str(job), *arguments)
    assert done.code == 1
    assert shown in done.err
