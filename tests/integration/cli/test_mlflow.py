"""`trainwire mlflow`, deliveries and replays with a real MLflow."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable

import pytest
from sqlalchemy import text

from tests.factories import NOW_NS, Sender, completion, drain, one
from tests.integration.cli.conftest import Trainwire
from tests.mlflow_server import MlflowServer
from trainwire.schemas.tables import delivery_cursors, training_attempts, training_jobs
from trainwire.schemas.wire.messages import Metrics, Point
from trainwire.stores.mlflow.runs import get_run
from trainwire.workers.resources import Resources
from trainwire.workers.sinks.deliver import Delivery
from trainwire.workers.sinks.mlflow.backlog import MetricBacklog
from trainwire.workers.sinks.mlflow.sink import MlflowSink

NAMES = ["loss", "acc@1", "<script>\x1b[2J"]
Deliver = Callable[[], None]


@pytest.fixture
def experiment() -> str:
    """A name of an experiment that no other test uses."""
    return f"test-{uuid.uuid4()}"


@pytest.fixture
def deliver(resources: Resources, mlflow_server: MlflowServer, experiment: str) -> Deliver:
    """Return a function that mirrors waiting rows."""

    def run() -> None:
        sink = MlflowSink(mlflow_server.api, experiment)
        Delivery(resources.engine, MetricBacklog("mlflow"), sink, slice_s=60).run()

    return run


@pytest.fixture
def job(resources: Resources, sender: Sender) -> None:
    """Job 1 with three points of three metrics and its end, stored and not delivered."""
    points = [
        Point(ts=NOW_NS, step=step, values=dict.fromkeys(NAMES, value))
        for step, value in enumerate([2.0, math.nan, 1.0])
    ]
    sender.send(Metrics(points=points, name="resnet", params={"lr": 0.1}))
    drain(resources, "metrics")
    sender.send(completion(produced={"metrics": 1}))
    drain(resources, "completions")


@pytest.fixture
def command(connected: Trainwire, alone: pytest.MonkeyPatch, mlflow_server: MlflowServer) -> Trainwire:
    """Give a function that runs a command which knows the MLflow server."""
    alone.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)
    return connected


@pytest.mark.usefixtures("job")
def test_a_run_is_shown(
    command: Trainwire, deliver: Deliver, experiment: str, mlflow_server: MlflowServer
) -> None:
    """The run's id, URL and state, a summary of its metrics without NaN, and the adapted values."""
    assert "run             none in MLflow yet" in command("mlflow", "1").out
    deliver()
    shown = command("mlflow", "1")
    lines = dict(line.split(maxsplit=1) for line in shown.out.splitlines())
    assert (shown.code, lines["job"], lines["status"], lines["experiment"]) == (
        *(0, "1, attempt 1"),
        *("FINISHED", experiment),
    )
    assert lines["run"].endswith("resnet, mirrored by trainwire")
    assert lines["address"].startswith(f"{mlflow_server.url}/#/experiments/")
    assert lines["mirror"] == "all 3 points delivered"
    assert lines["loss"].split() == ["3", "1", "1", "2"]
    assert "'metric acc@1' is called acc_1-" in shown.out
    assert "\x1b" not in shown.out


@pytest.mark.usefixtures("job")
def test_a_run_is_a_document(command: Trainwire, deliver: Deliver) -> None:
    """`--json` has the ids, the run, the metrics, the notes and the progress of the mirror."""
    deliver()
    document = json.loads(command("mlflow", "1", "--json", "--limit", "1").out)
    assert (document["attempt"], document["mlflow_run_id"]) == (1, None)
    assert document["mirror_run_id"] == document["summary"]["run"]["run_id"]
    assert document["summary"]["run"]["params"] == {"lr": "0.1"}
    assert document["delivery"]["rows_behind"] == 0
    assert (len(document["summary"]["metrics"]), document["summary"]["more_metrics"]) == (1, 2)
    assert len(document["mirror_notes"]) == 2


@pytest.mark.usefixtures("job")
def test_an_unavailable_run_is_reported(connected: Trainwire, alone: pytest.MonkeyPatch) -> None:
    """A missing address, server or attempt is one error each."""
    assert connected("mlflow", "1").err.startswith("trainwire: MLFLOW_TRACKING_URI is not set: name the")
    alone.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert "job 1 has no attempt 7" in connected("mlflow", "1", "--attempt", "7").err
    assert "no job 5 in the database" in connected("mlflow", "5").err
    away = connected("mlflow", "1")
    assert away.err.startswith("trainwire: MLflow at 127.0.0.1:9 does not answer: ")
    alone.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert "MLFLOW_TRACKING_URI is not an address of a server" in connected("mlflow", "1").err


@pytest.mark.usefixtures("job")
def test_the_trainers_own_run_is_shown(
    command: Trainwire, mlflow_server: MlflowServer, resources: Resources
) -> None:
    """A run of the trainer takes precedence over ours, and is marked as the trainer's."""
    made = mlflow_server.api.post("runs/create", experiment_id="0", start_time=1, run_name="theirs")
    run_id = made["run"]["info"]["run_id"]
    with resources.engine.begin() as connection:
        connection.execute(text("UPDATE training_attempts SET mlflow_run_id = :run"), {"run": run_id})
    shown = command("mlflow", "1").out
    assert f"{run_id} theirs, logged by the trainer" in shown
    assert "none: the trainer logs to this run itself" in shown
    assert "delivered" not in shown


@pytest.mark.usefixtures("job")
def test_status_shows_that_a_trainer_logs_by_itself(
    command: Trainwire, deliver: Deliver, resources: Resources, sender: Sender
) -> None:
    """Skipped rows are not shown as delivered, also if an attempt before was mirrored."""
    deliver()
    point = Point(ts=NOW_NS, step=9, values={"loss": 1.0})
    sender.send(Metrics(points=[point], mlflow_run_id="theirs"), attempt=2, source="0-second")
    drain(resources, "metrics")
    deliver()
    shown = command("status", "1").out
    assert "mlflow          nothing mirrored: the trainer logs to run theirs itself\n" in shown
    assert "delivered" not in shown
    assert json.loads(command("status", "1", "--json").out)["deliveries"]["mlflow"]["own_run_id"] == "theirs"


@pytest.mark.usefixtures("job")
def test_deliveries_have_mlflow_where_there_is_one(command: Trainwire, deliver: Deliver) -> None:
    """`deliveries` and `status` show MLflow with its number of points."""
    sinks = json.loads(command("deliveries", "--json").out)
    assert [(sink["sink"], sink["rows_behind"]) for sink in sinks] == [("loki", 0), ("mlflow", 3)]
    assert "mlflow" not in command("status", "1").out
    deliver()
    assert "mlflow: answers\n1 job fully delivered: 3 rows" in command("deliveries").out
    assert "mlflow          all 3 points delivered\n" in command("status", "1").out
    assert command("deliveries", "retry", "--sink", "mlflow").out.startswith("mlflow is not known to be down")
    refused = command("verify", "1", "--sink", "mlflow")
    assert (refused.code, "see `trainwire mlflow 1`" in refused.err) == (1, True)


@pytest.mark.usefixtures("engine")
def test_without_an_mlflow_there_is_no_word_of_it(connected: Trainwire) -> None:
    """Without MLflow no output mentions it."""
    assert [sink["sink"] for sink in json.loads(connected("deliveries", "--json").out)] == ["loki"]


@pytest.mark.usefixtures("job")
def test_a_replay_writes_nothing_twice(
    command: Trainwire, deliver: Deliver, resources: Resources, mlflow_server: MlflowServer
) -> None:
    """Rows are sent again to the same run, which has every point once and is unchanged."""
    deliver()
    run_id = one(resources.engine, training_jobs, id=1)["mlflow_run_id"]
    shown = command("replay", "1", "--sink", "mlflow", "--from", "2")
    assert shown.out == "2 rows of job 1, from 2 on, will be sent to mlflow again\n"
    assert one(resources.engine, delivery_cursors, sink="mlflow")["confirmed_seq"] == 1
    deliver()
    assert one(resources.engine, training_jobs, id=1)["mlflow_run_id"] == run_id
    history = mlflow_server.api.get("metrics/get-history", run_id=run_id, metric_key="loss")["metrics"]
    assert [point["step"] for point in history] == [0, 1, 2]
    run = get_run(mlflow_server.api, run_id)
    assert run is not None
    assert run.status == "FINISHED"
    row = one(resources.engine, training_attempts, job_id=1)
    assert (row["changes"] == row["mirrored_changes"], len(row["mirror_notes"])) == (True, 2)


@pytest.mark.usefixtures("job")
def test_a_replay_makes_a_new_run_for_a_deleted_one(
    command: Trainwire, deliver: Deliver, resources: Resources, mlflow_server: MlflowServer, sender: Sender
) -> None:
    """A deleted run is recreated by a replay, and the job has the new run's id."""
    deliver()
    first = one(resources.engine, training_jobs, id=1)["mlflow_run_id"]
    mlflow_server.api.post("runs/delete", run_id=first)
    sender.send(Metrics(points=[Point(ts=NOW_NS, step=9, values={"loss": 0.0})]))
    drain(resources, "metrics")
    deliver()
    assert f"'stopped' run {first} was deleted in MLflow" in command("mlflow", "1").out
    command("replay", "1", "--sink", "mlflow")
    deliver()
    second = one(resources.engine, training_jobs, id=1)["mlflow_run_id"]
    assert second != first
    run = get_run(mlflow_server.api, second)
    assert run is not None
    assert (run.status, run.is_deleted, run.metrics["loss"], len(run.metrics)) == ("FINISHED", False, 0.0, 3)
