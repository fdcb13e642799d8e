"""Imports: from a file or server to rows in Postgres, once, with a receipt."""

from __future__ import annotations

import json
import math
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from tests.factories import drain, one, rows
from tests.integration.cli.conftest import Trainwire
from tests.mlflow_faults import faulty_mlflow
from tests.mlflow_server import MlflowServer
from tests.unit.cli.event_files import event_file, hparams, scalar, text
from tests.unit.cli.wandb_files import START_S, exit_record, history, output, run_record, set_age, wandb_file
from trainwire.cli.transfer import sending
from trainwire.cli.transfer.import_report import DELETED
from trainwire.cli.transfer.importing import import_runs
from trainwire.cli.transfer.runs import End, Header, Item, SourceRun, Tally
from trainwire.cli.transfer.sending import Sender
from trainwire.schemas.keys import HOLD_KEY, KINDS
from trainwire.schemas.tables import source_positions, training_jobs, training_logs, training_metrics
from trainwire.schemas.wire.messages import Point
from trainwire.stores.mlflow import runs
from trainwire.stores.mlflow.http import MlflowUnavailable
from trainwire.stores.mlflow.runs import get_metric_page
from trainwire.stores.postgres.deletion import Choice, begin_deletion
from trainwire.workers.resources import Resources

POINTS = ("epoch", "step", "loss", "accuracy", "extra_metrics")


def receipt_of(trainwire: Trainwire, *arguments: str, code: int = 0) -> dict[str, Any]:
    """Run an import, and return its receipt."""
    done = trainwire("import", *arguments, "--json")
    assert done.code == code, done.err
    receipt: dict[str, Any] = json.loads(done.out)
    for kind in ("runs", "points", "lines", "files"):
        count = receipt[kind]
        assert count["source"] == count["stored"] + sum(count["skipped"].values()) + count["missing"]
    return receipt


@pytest.mark.usefixtures("workers")
def test_a_csv_file_becomes_a_job_once(connected: Trainwire, resources: Resources, tmp_path: Path) -> None:
    """Times, steps and values are those of the file; a second import sends nothing, `--verify` agrees."""
    file = tmp_path / "digits.csv"
    file.write_text(
        "step,epoch,time,loss,acc,val/loss\n"
        "1,0,2024-05-01T10:00:00Z,0.5,0.25,\n"
        "2,0,1714557601.5,nan,0,inf\n"
        "3,1,2024-05-01 10:00:02,x,0.75,1e-3\n"
    )
    receipt = receipt_of(connected, "csv", str(file))
    assert receipt["points"]["stored"] == 7
    assert receipt["points"]["skipped"] == {"not a number, column 'loss'": 1}
    stored = rows(resources.engine, training_metrics, *POINTS)
    assert stored[0] == (0, 1, 0.5, 0.25, None)
    assert math.isnan(stored[1][2])
    assert stored[1][3:] == (0.0, {"val/loss": "Infinity"})
    assert stored[2] == (1, 3, None, 0.75, {"val/loss": 0.001})
    times = rows(resources.engine, training_metrics, "logged_at")
    assert [at.timestamp() for at in times] == [1714557600.0, 1714557601.5, 1714557602.0]
    job = one(resources.engine, training_jobs, id=receipt["imported"][0]["job_id"])
    assert (job["name"], job["status"], job["started_at"], job["completed_at"]) == (
        "digits", "ended", times[0], times[2],
    )  # fmt: skip
    again = receipt_of(connected, "csv", str(file))
    assert (again["points"], again["imported"][0]["sent"]) == (receipt["points"], 0)
    assert receipt_of(connected, "csv", str(file), "--verify")["points"] == receipt["points"]
    assert len(rows(resources.engine, training_metrics, "seq")) == 3
    other = receipt_of(connected, "csv", str(file), "--copy", "2")
    assert other["imported"][0]["job_id"] != receipt["imported"][0]["job_id"]


def test_an_interrupted_import_continues(
    connected: Trainwire, resources: Resources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without workers the import ends with the remedy; the next one adds what is missing, and nothing twice."""
    file = tmp_path / "long.csv"
    file.write_text("step,loss\n" + "".join(f"{step},{step / 7}\n" for step in range(25_500)))
    with monkeypatch.context() as patch:
        patch.setattr(sending, "STALLED_S", 0.3)
        patch.setattr(sending, "WINDOW_MESSAGES", 5)
        patch.setattr(sending, "BATCH_MESSAGES", 4)
        done = connected("import", "csv", str(file))
    assert done.code == 1
    assert "start workers" in done.err
    assert "run the same command again" in done.err
    assert 4 <= sum(resources.redis.xlen(key) for key in resources.redis.keys("ingest:{*}:metrics")) <= 12
    assert receipt_of(connected, "csv", str(file), "--verify", code=1)["points"]["missing"] == 25_500
    worker = threading.Thread(target=_drain_for, args=(resources, 280.0, stop := threading.Event()))
    worker.start()
    try:
        receipt = receipt_of(connected, "csv", str(file))
    finally:
        stop.set()
        worker.join()
    assert receipt["points"] == {"source": 25_500, "stored": 25_500, "skipped": {}, "missing": 0}
    assert rows(resources.engine, training_metrics, "step") == list(range(25_500))


def _drain_for(resources: Resources, seconds: float, stop: threading.Event) -> None:
    deadline = time.monotonic() + seconds
    while not stop.is_set() and time.monotonic() < deadline:
        for kind in KINDS:
            for shard in range(1, 5):
                drain(resources, kind, job=shard)


def test_an_import_waits_while_redis_holds_trainers_back(
    connected: Trainwire, resources: Resources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the high-water mark nothing is sent."""
    file = tmp_path / "held.csv"
    file.write_text("step,loss\n1,1\n")
    monkeypatch.setattr(sending, "STALLED_S", 0.2)
    resources.redis.set(HOLD_KEY, 1)
    assert "no message was stored" in connected("import", "csv", str(file)).err
    assert resources.redis.keys("ingest:{*}:metrics") == []


@pytest.mark.usefixtures("workers")
def test_a_deleted_import_is_named(connected: Trainwire, tmp_path: Path) -> None:
    """The points of a deleted job count as skipped, with the remedy."""
    file = tmp_path / "digits.csv"
    file.write_text("step,loss\n1,1\n2,2\n")
    job = receipt_of(connected, "csv", str(file))["imported"][0]["job_id"]
    assert connected("delete", str(job), "--yes").code == 0
    skipped = receipt_of(connected, "csv", str(file))["points"]["skipped"]
    assert list(skipped.values()) == [2]
    assert "--copy" in next(iter(skipped))
    assert receipt_of(connected, "csv", str(file), "--copy", "2")["points"]["stored"] == 2


def test_a_job_that_is_deleted_during_its_import_ends_the_wait(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers discard its messages, so the import does not wait for them, and names the deletion."""
    monkeypatch.setattr(sending, "STALLED_S", 2.0)

    def items(tally: Tally) -> Iterator[Item]:
        yield Header(name="digits", started_ns=None)
        yield Point(ts=1, step=1, values={"loss": 0.5})
        tally.taken["points"] += 1
        with resources.engine.begin() as other:
            other.execute(insert(training_jobs).values(id=run.job_id, name="digits", status="running"))
            begin_deletion(other, run.job_id, Choice(), by="a test", force=True)
        yield End(ts=2)

    run = SourceRun(tool="csv", identity="deleted while it is read", name="digits", items=items)
    with resources.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        report = import_runs([run], connection, Sender(resources.redis, connection), lambda *_: None)
    assert (report.points.stored, report.points.skipped) == (0, {DELETED: report.points.source})
    assert report.complete


@pytest.mark.usefixtures("workers")
def test_a_folder_of_tensorboard_becomes_jobs(connected: Trainwire, resources: Resources, tmp_path: Path) -> None:
    """Each run is a job; its parts are joined, its parameters, texts and times kept, its images counted."""
    first = tmp_path / "runs" / "a"
    event_file(first / "train", hparams(lr=0.5), *(scalar("loss", 1 / step, step) for step in (1, 2, 4)))
    event_file(first / "validation", scalar("loss", 2.0, 4), text("note", "hello", 4))
    event_file(tmp_path / "runs" / "b", scalar("loss", 0.25, 1))
    receipt = receipt_of(connected, "tensorboard", str(tmp_path / "runs"))
    assert (receipt["runs"]["stored"], receipt["points"]["stored"], receipt["lines"]["stored"]) == (2, 5, 1)
    assert receipt["files"] == {"source": 3, "stored": 3, "skipped": {}, "missing": 0}
    numbers = {run["name"]: run["job_id"] for run in receipt["imported"]}
    job = one(resources.engine, training_jobs, id=numbers["a"])
    assert (job["params"], job["status"]) == ({"lr": 0.5}, "ended")
    with resources.engine.connect() as connection:
        stored = connection.execute(
            training_metrics.select().where(training_metrics.c.job_id == numbers["a"])
        ).mappings()
        values = [(row["step"], row["extra_metrics"]) for row in stored]
    assert values[:3] == [(step, {"train/loss": 1 / step}) for step in (1, 2, 4)]
    assert values[3:] == [(4, {"validation/loss": 2.0})]
    assert rows(resources.engine, training_logs, "content") == ["validation/note (step 4): hello"]
    assert receipt_of(connected, "tensorboard", str(tmp_path / "runs"))["points"] == receipt["points"]
    assert len(rows(resources.engine, training_metrics, "seq")) == 5


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize("damage", ["cut", "flipped", "garbage"])
def test_a_damaged_event_file_is_imported_up_to_the_damage(
    connected: Trainwire, resources: Resources, tmp_path: Path, damage: str
) -> None:
    """What comes before is stored, the file and the byte are named, and the command fails."""
    path = event_file(tmp_path, *(scalar("loss", 0.5, step) for step in range(10)))
    data = path.read_bytes()
    at = len(data) // 10 * 9
    damaged = {"cut": data[:-3], "flipped": data[:-6] + b"\x01" + data[-5:], "garbage": data[:at] + b"\xff" * 50}
    path.write_bytes(damaged[damage])
    done = connected("import", "tensorboard", str(tmp_path))
    assert done.code == 1
    assert f"{path}: the record at byte {at:,}" in done.err
    assert rows(resources.engine, training_metrics, "step") == list(range(9))
    assert "1 skipped (read up to an error)" in done.out


@pytest.mark.usefixtures("workers")
def test_a_folder_of_wandb_becomes_jobs_once(connected: Trainwire, resources: Resources, tmp_path: Path) -> None:
    """Values, steps, times, output and ends are stored; a second import, also of moved files, sends nothing."""
    folder = tmp_path / "wandb"
    rows_ = [history(step, {"loss": 1 / (step + 1), "val/f1": "NaN"}) for step in range(2500)]
    first = wandb_file(
        folder / "offline-run-1" / "run-a.wandb",
        run_record("a", name="brisk", lr=0.5), *rows_, output("done\n"), exit_record(0, 3000),
    )  # fmt: skip
    wandb_file(folder / "run-2" / "run-b.wandb", run_record("b"), history(0, {"loss": 1}), exit_record(1))
    wandb_file(folder / "run-3" / "run-c.wandb", run_record("c"), history(0, {"loss": 1}), age_s=5)
    receipt = receipt_of(connected, "wandb", str(folder))
    assert (receipt["runs"]["stored"], sum(receipt["runs"]["skipped"].values())) == (2, 1)
    assert (receipt["points"]["stored"], receipt["lines"]["stored"], receipt["files"]["stored"]) == (5001, 1, 2)
    numbers = {run["name"]: run["job_id"] for run in receipt["imported"]}
    job = one(resources.engine, training_jobs, id=numbers["brisk"])
    assert (job["params"], job["status"], job["exit_code"]) == ({"lr": 0.5}, "completed", 0)
    assert (job["started_at"].timestamp(), job["completed_at"].timestamp()) == (START_S, START_S + 3000)
    failed = one(resources.engine, training_jobs, id=numbers["b"])
    assert (failed["status"], failed["exit_code"]) == ("failed", 1)
    with resources.engine.connect() as connection:
        wanted = training_metrics.select().where(training_metrics.c.job_id == numbers["brisk"])
        stored = connection.execute(wanted.order_by(training_metrics.c.seq)).mappings().all()
    assert [(row["step"], row["loss"]) for row in stored] == [(step, 1 / (step + 1)) for step in range(2500)]
    assert {str(row["extra_metrics"]) for row in stored} == {"{'val/f1': 'NaN'}"}
    assert [row["logged_at"].timestamp() for row in stored[:3]] == [START_S, START_S + 1, START_S + 2]
    assert rows(resources.engine, training_logs, "content") == ["done"]
    moved = first.rename(tmp_path / "moved.wandb")
    again = receipt_of(connected, "wandb", str(moved))
    assert (again["points"]["stored"], again["imported"][0]["sent"]) == (5000, 0)
    assert receipt_of(connected, "wandb", str(moved), "--verify")["points"] == again["points"]
    assert len(rows(resources.engine, training_metrics, "seq")) == 2501


@pytest.mark.usefixtures("workers")
def test_a_grown_file_of_wandb_is_never_imported_twice(
    connected: Trainwire, resources: Resources, tmp_path: Path
) -> None:
    """A run that went on after its import counts as missing, with the remedy, and makes no second job."""
    path = wandb_file(tmp_path / "run-a.wandb", run_record("a"), history(0, {"loss": 1}))
    assert receipt_of(connected, "wandb", str(path))["points"]["stored"] == 1
    assert one(resources.engine, training_jobs)["error_message"].endswith("the process was killed")
    wandb_file(path, run_record("a"), history(0, {"loss": 1}), history(1, {"loss": 2}), exit_record(0))
    done = connected("import", "wandb", str(path))
    assert done.code == 1
    assert "the source has changed since its import" in " ".join(done.err.split())
    assert rows(resources.engine, training_metrics, "step") == [0]
    assert receipt_of(connected, "wandb", str(path), "--copy", "2")["points"]["stored"] == 2


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_file_of_wandb_is_imported_up_to_the_damage(
    connected: Trainwire, resources: Resources, tmp_path: Path, damage: str
) -> None:
    """What comes before is stored, the file and the byte are named, and the command fails."""
    path = wandb_file(
        tmp_path / "run-a.wandb", run_record("a"), *(history(step, {"loss": 1}) for step in range(9))
    )
    at = len(path.read_bytes())
    path = wandb_file(
        path, run_record("a"), *(history(step, {"loss": 1}) for step in range(10)), exit_record(0)
    )  # fmt: skip
    data = path.read_bytes()
    path.write_bytes(data[: at + 20] if damage == "cut" else data[: at + 20] + b"\xff" + data[at + 21 :])
    set_age(path, 3600)
    done = connected("import", "wandb", str(path))
    assert done.code == 1
    assert f"{path}: the record at byte {at:,}" in done.err
    assert rows(resources.engine, training_metrics, "step") == list(range(9))
    assert "1 skipped (read up to an error)" in done.out


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize("kind", ["damaged", "missing"])
@pytest.mark.parametrize("tool", ["wandb", "tensorboard"])
def test_a_run_that_cannot_be_read_is_named(
    connected: Trainwire, resources: Resources, tmp_path: Path, tool: str, kind: str
) -> None:
    """The others are imported; stderr and the receipt name the file and the reason, and the exit code is 1."""
    if tool == "wandb":
        wandb_file(tmp_path / "a" / "run-a.wandb", run_record("a"), history(0, {"loss": 1}), exit_record(0))
        bad = tmp_path / "b" / "run-b.wandb"
    else:
        event_file(tmp_path / "a", scalar("loss", 0.5, 1))
        bad = tmp_path / "b" / "events.out.tfevents.1.b"
    bad.parent.mkdir()
    if kind == "missing":
        bad.symlink_to(tmp_path / "moved")
    else:
        bad.write_bytes(b"this is no file of a run" * 9)
    done = connected("import", tool, str(tmp_path))
    assert done.code == 1
    assert f"{bad}: " in done.err
    assert ("No such file" if kind == "missing" else "") in done.err
    assert rows(resources.engine, training_metrics, "loss") == [1.0 if tool == "wandb" else 0.5]
    receipt = receipt_of(connected, tool, str(tmp_path), "--verify", code=1)
    assert not receipt["complete"]
    if tool == "wandb" or kind == "missing":
        assert [(left["name"], left["is_failure"]) for left in receipt["left_out"]] == [(str(bad), True)]


@pytest.mark.usefixtures("workers")
def test_an_mlflow_server_is_imported_with_its_history(
    connected: Trainwire, resources: Resources, mlflow_server: MlflowServer
) -> None:
    """Names, times, parameters, tags, every point of the history and the ends are those of MLflow."""
    name = f"import-{uuid.uuid4()}"
    experiment = mlflow_server.api.post("experiments/create", name=name)["experiment_id"]
    ids = {status: make_run(mlflow_server, experiment, status) for status in ("FINISHED", "FAILED", "RUNNING")}
    receipt = receipt_of(connected, "mlflow", mlflow_server.url, "--experiment", name)
    assert receipt["runs"]["skipped"] == {"has not ended: import it again when it has": 1}
    assert receipt["points"] == {"source": 2 * 1203, "stored": 2 * 1203, "skipped": {}, "missing": 0}
    jobs = rows(
        resources.engine, training_jobs, "name", "status", "params", "tags", "started_at", "mlflow_run_id",
        order=("name",),
    )  # fmt: skip
    assert [(job[0], job[1]) for job in jobs] == [("FAILED", "failed"), ("FINISHED", "completed")]
    assert jobs[1][2] == {"lr": "0.1"}
    assert jobs[1][3]["team"] == "vision"
    assert jobs[1][3]["imported_from"] == f"mlflow run {ids['FINISHED']}"
    assert jobs[1][4].timestamp() == 1_700_000_000
    assert jobs[1][5] is None
    number = next(run["job_id"] for run in receipt["imported"] if run["name"] == "FINISHED")
    with resources.engine.connect() as connection:
        stored = connection.execute(
            training_metrics.select().where(training_metrics.c.job_id == number).order_by(training_metrics.c.seq)
        ).mappings()
        found = [(row["step"], row["loss"], row["extra_metrics"]) for row in stored]
    assert [each[:2] for each in found if each[1] is not None] == [(step, step / 4) for step in range(1200)]
    assert [(each[0], each[2]) for each in found if each[2]] == [
        (5, {"f1": 0.5}), (5, {"f1": 0.75}), (7, {"f1": "NaN"}),
    ]  # fmt: skip
    again = receipt_of(connected, "mlflow", mlflow_server.url, "--experiment", name)
    assert (again["points"], sum(run["sent"] for run in again["imported"])) == (receipt["points"], 0)
    positions = rows(resources.engine, source_positions, "source", "missing", order=("source",))
    assert all(source.startswith("import-mlflow-") and not missing for source, missing in positions)


@pytest.mark.usefixtures("workers")
def test_an_mlflow_server_that_goes_away_is_continued(
    connected: Trainwire, resources: Resources, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the remedy, and the next import adds only what is missing."""
    name = f"import-{uuid.uuid4()}"
    experiment = mlflow_server.api.post("experiments/create", name=name)["experiment_id"]
    for _ in range(2):
        make_run(mlflow_server, experiment, "FINISHED")
    pages = iter(range(3))  # each run has two metrics

    def page(*arguments: Any) -> Any:
        if next(pages, None) is None:
            raise MlflowUnavailable("MLflow at 127.0.0.1:5000 does not answer: ConnectTimeout")
        return get_metric_page(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "get_metric_page", page)
        done = connected("import", "mlflow", mlflow_server.url, "--experiment", name)
    assert done.code == 1
    assert "does not answer" in done.err
    assert "run the same command again" in done.err
    receipt = receipt_of(connected, "mlflow", mlflow_server.url, "--experiment", name)
    assert receipt["points"] == {"source": 2406, "stored": 2406, "skipped": {}, "missing": 0}
    assert len(rows(resources.engine, training_jobs, "id", order=("id",))) == 2


@pytest.mark.usefixtures("workers")
def test_a_run_that_mlflow_cannot_return_is_left_out(
    connected: Trainwire, resources: Resources, mlflow_server: MlflowServer
) -> None:
    """If the server fails at a metric of one run, nothing of that run is sent, and the others are imported."""
    name = f"import-{uuid.uuid4()}"
    experiment = mlflow_server.api.post("experiments/create", name=name)["experiment_id"]
    bad = make_run(mlflow_server, experiment, "FAILED")
    make_run(mlflow_server, experiment, "FINISHED")
    with faulty_mlflow(mlflow_server.url) as proxy:
        proxy.poison = f"metrics/get-history?run_id={bad}&metric_key=loss".encode()
        receipt = receipt_of(connected, "mlflow", proxy.url, "--experiment", name, code=1)
        assert proxy.failed
        (left,) = receipt["left_out"]
        assert (left["name"], left["is_failure"]) == ("FAILED", True)
        assert "MLflow fails at its metric 'loss': MLflow answered 500: it hurts" in left["reason"]
        assert rows(resources.engine, training_jobs, "name", order=("name",)) == ["FINISHED"]
        proxy.poison = None
        receipt = receipt_of(connected, "mlflow", proxy.url, "--experiment", name)
    assert receipt["points"] == {"source": 2406, "stored": 2406, "skipped": {}, "missing": 0}


def make_run(server: MlflowServer, experiment: str, status: str) -> str:
    """Make a run with 1200 points of a metric and three of another."""
    began = 1_700_000_000_000
    run_id: str = server.api.post(
        "runs/create", experiment_id=experiment, run_name=status, start_time=began,
        tags=[{"key": "team", "value": "vision"}],
    )["run"]["info"]["run_id"]  # fmt: skip
    points = [{"key": "loss", "value": step / 4, "timestamp": began + step, "step": step} for step in range(1200)]
    for at in range(0, 1200, 600):
        server.api.post("runs/log-batch", run_id=run_id, metrics=points[at : at + 600])
    extra = [
        {"key": "f1", "value": value, "timestamp": began + step, "step": step}
        for step, value in ((5, 0.5), (5, 0.75), (7, "NaN"))
    ]
    server.api.post("runs/log-batch", run_id=run_id, metrics=extra, params=[{"key": "lr", "value": "0.1"}])
    if status != "RUNNING":
        server.api.post("runs/update", run_id=run_id, status=status, end_time=began + 5000)
    return run_id


@pytest.mark.parametrize(
    ("arguments", "named", "remedy"),
    [
        (("csv", "/no/such.csv"), "/no/such.csv", "No such file"),
        (("tensorboard", "/no/such"), "/no/such", "tensorboard --logdir"),
        (("wandb", "/no/such"), "/no/such", "the folder `wandb` of the training"),
        (("mlflow", "sqlite:///mlflow.db"), "sqlite:///mlflow.db", "`mlflow server --backend-store-uri"),
        (
            ("mlflow", "my runs"),
            "my runs",
            "`MLFLOW_ALLOW_FILE_STORE=true mlflow server --backend-store-uri 'my runs'",
        ),
        (("mlflow", "http://127.0.0.1:1"), "127.0.0.1:1", "run the same command again"),
    ],
)
def test_a_wrong_source_is_named_with_the_remedy(
    connected: Trainwire, arguments: tuple[str, str], named: str, remedy: str
) -> None:
    """One sentence names the value and what to do."""
    done = connected("import", *arguments)
    assert done.code == 1
    assert named in done.err
    assert remedy in done.err
    assert "Traceback" not in done.err


def test_an_empty_folder_is_named(connected: Trainwire, tmp_path: Path) -> None:
    """A folder without event files is an error, not an import of nothing."""
    done = connected("import", "tensorboard", str(tmp_path))
    assert done.code == 1
    assert "no event file" in done.err
