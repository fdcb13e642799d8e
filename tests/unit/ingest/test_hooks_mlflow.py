"""Trainings that log to MLflow, under the launcher's hooks: compared with MLflow's own SQLite store."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.processes import ROOT
from trainwire.ingest.hooks.caught import Caught
from trainwire.ingest.hooks.listener import CARRIER, SOCKET_VARIABLE, HookListener
from trainwire.testing import RecordedRun

OPERATIONS = Path(__file__).with_name("mlflow_operations.py")
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"}


class Training:
    """A script that ran with the hooks in its Python, and what the job has of it."""

    def __init__(self, script: str, folder: Path, environ: dict[str, str]) -> None:
        self.run = RecordedRun(42)
        self.caught = Caught(self.run, lambda _: self.run)
        listener = HookListener(folder, self.caught)
        base = {
            name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "MLFLOW_TRACKING_URI"}
        }
        command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)]
        try:
            self.output = subprocess.run(
                command,
                cwd=folder,
                env={**base, **QUIET, **listener.environment({}), **environ},
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                timeout=240,
            ).stdout
        finally:
            listener.close(10)

    def values(self) -> dict[tuple[str, int], float]:
        """Return the stored values, by name and step."""
        return {
            (name, point.step or 0): value for point in self.run.points for name, value in point.values.items()
        }


def train(script: str, folder: Path, **environ: str) -> Training:
    """Run a script with the hooks, in a folder of its own."""
    return Training(script, folder, environ)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return the results of all operations with trainwire's store and with MLflow's, and the metrics caught."""
    script = OPERATIONS.read_text()
    ours = train(script, tmp_path_factory.mktemp("ours"))
    theirs = train(script, tmp_path_factory.mktemp("theirs"), MLFLOW_TRACKING_URI="sqlite:///mlflow.db")
    assert not theirs.run.points
    return [json.loads(ours.output), json.loads(theirs.output)]


NAMES = re.findall(r"^@operation\ndef (\w+)", OPERATIONS.read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_an_operation_is_that_of_mlflows_own_store(name: str, stores: list[dict[str, Any]]) -> None:
    """Each operation of the client has the result, or the error, that it has with MLflow's SQLite store."""
    ours, theirs = stores
    assert ours[name] == theirs[name]


NESTED = """
import mlflow
assert mlflow.get_tracking_uri() == "trainwire:"
with mlflow.start_run(run_name="main", tags={"team": "x"}) as run:
    mlflow.log_params({"lr": 0.1, "layers": [8, 8]})
    mlflow.set_tag("kind", "digits")
    for step in range(300):
        mlflow.log_metric("loss", 1 / (step + 1), step=step, timestamp=1_800_000_000_000 + step)
    mlflow.log_metrics({"bad": float("nan"), "high": float("inf")}, step=7)
    for name in ("fold", "fold"):
        with mlflow.start_run(run_name=name, nested=True):
            mlflow.log_param("index", 1)
            mlflow.set_tag("inner", "yes")
            mlflow.log_metric("loss", 2)
            with mlflow.start_run(run_name="deep", nested=True):
                mlflow.log_metric("loss", 3)
with mlflow.start_run(run_name="later"):
    mlflow.log_metric("loss", 4)
"""


def test_a_run_and_those_below_it_are_one_job(tmp_path: Path) -> None:
    """The first run's values have their names; those of runs below or after it have the run's name before them."""
    training = train(NESTED, tmp_path)
    expected: dict[tuple[str, int], float] = {("loss", step): 1 / (step + 1) for step in range(300)}
    expected |= {("bad", 7): float("nan"), ("high", 7): float("inf")}
    for prefix in ("fold/", "fold-2/"):
        expected |= {(f"{prefix}loss", 0): 2, (f"{prefix}deep/loss", 0): 3}
    expected["later/loss", 0] = 4
    assert training.values() == pytest.approx(expected, abs=0, rel=0, nan_ok=True)
    assert training.run.points[7].ts == 1_800_000_000_007_000_000
    assert training.run.params == {"lr": "0.1", "layers": "[8, 8]", "fold/index": "1", "fold-2/index": "1"}
    assert training.run.tags == {"team": "x", "kind": "digits"}
    assert "MLflow run fold" in training.run.text
    assert "ended: FINISHED" in training.run.text
    assert "caught 307 values of 8 metrics from mlflow" in str(training.caught.sentence())


AUTOLOG = """
import json, mlflow
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
mlflow.sklearn.autolog(log_models=False)
LogisticRegression(max_iter=500).fit(*load_iris(return_X_y=True))
run = mlflow.last_active_run()
model = GridSearchCV(LogisticRegression(max_iter=500), {"C": [0.1, 1.0]}, cv=2).fit(*load_iris(return_X_y=True))
with mlflow.start_run():
    kept = mlflow.sklearn.log_model(model, name="model", pip_requirements=[], serialization_format="cloudpickle")
assert mlflow.sklearn.load_model(kept.model_uri).best_params_ == model.best_params_
print(json.dumps([run.data.metrics, run.data.params, len(mlflow.search_runs())]))
"""


def test_sklearn_logs_by_itself(tmp_path: Path) -> None:
    """Values and parameters of autolog are stored, also of a search; a logged model can be loaded."""
    training = train(AUTOLOG, tmp_path)
    metrics, params, runs = json.loads(training.output)
    assert len(metrics) >= 6
    assert {(name, 0): value for name, value in metrics.items()}.items() <= training.values().items()
    assert params.items() <= training.run.params.items()
    assert runs == 5
    assert f"file recorded: {tmp_path}/mlruns/0/" in training.run.text


OTHER_PROCESSES = """
import os, subprocess, sys
import mlflow
mlflow.set_experiment("digits")
with mlflow.start_run(run_name="main") as run:
    mlflow.log_metric("loss", 1, step=1)
    pid = os.fork()
    if pid == 0:
        mlflow.MlflowClient().log_metric(run.info.run_id, "loss", 2, step=2)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
code = f'''
import mlflow
mlflow.set_experiment("digits")
with mlflow.start_run(run_id={run.info.run_id!r}):
    mlflow.log_metric("loss", 3, step=3)
with mlflow.start_run(run_name="child"):
    mlflow.log_metric("loss", 4, step=4)
'''
subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
code = "import mlflow; mlflow.start_run(); mlflow.log_metric('own', 5)"
subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, env={**os.environ, "RANK": "1"})
print([point.value for point in mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")])
print(len(mlflow.search_runs(experiment_names=["digits"])))
"""


def test_processes_of_a_launch_share_runs(tmp_path: Path) -> None:
    """A fork logs to its parent's run, another process continues it; a rank's first run has no prefix."""
    training = train(OTHER_PROCESSES, tmp_path)
    assert training.output.split("\n") == ["[1.0, 2.0, 3.0]", "3", ""]
    expected = {("loss", 1): 1, ("loss", 2): 2, ("loss", 3): 3, ("child/loss", 4): 4, ("own", 0): 5}
    assert training.values() == expected


OWN_SERVER = """
import json, mlflow
mlflow.set_tracking_uri("sqlite:///mlflow.db")
with mlflow.start_run() as run, mlflow.start_run(nested=True) as child:
    mlflow.log_metric("loss", 1)
tags = [mlflow.get_run(each.info.run_id).data.tags for each in (run, child)]
print(json.dumps([{name: each.get(name) for name in ("job_id", "attempt")} for each in tags]))
"""


def test_a_training_with_a_server_of_its_own_is_linked(tmp_path: Path) -> None:
    """Its values stay there; its outermost run is tagged with job and attempt, by which workers link it."""
    training = train(OWN_SERVER, tmp_path, TRAINWIRE_JOB_ID="42", TRAINWIRE_ATTEMPT="3")
    assert json.loads(training.output) == [{"job_id": "42", "attempt": "3"}, {"job_id": None, "attempt": None}]
    assert not training.run.points


REFUSED = """
import mlflow
from mlflow.tracking._tracking_service.utils import _get_store
for call in (lambda: mlflow.register_model("runs:/0/model", "name"), lambda: _get_store().new_method()):
    try:
        call()
    except mlflow.exceptions.MlflowException as exc:
        print(exc.error_code, exc.message)
print(mlflow.search_traces(experiment_ids=["0"], return_type="list"))
"""
NEW_METHOD = """
import abc, sys
from mlflow.store.tracking import abstract_store
class LaterStore(abstract_store.AbstractStore, metaclass=abc.ABCMeta):
    @abc.abstractmethod
    def new_method(self): ...
abstract_store.AbstractStore = LaterStore
"""


def test_what_is_not_supported_is_a_clear_error(tmp_path: Path) -> None:
    """The model registry and methods of a later MLflow raise errors with a remedy; there are no traces."""
    registry, method, traces, _ = train(NEW_METHOD + REFUSED, tmp_path).output.split("\n")
    assert registry.startswith("FEATURE_DISABLED trainwire keeps no model registry: call mlflow.set_registry_uri")
    assert method.startswith(
        "FEATURE_DISABLED new_method is not supported by trainwire: call mlflow.set_tracking_uri"
    )
    assert traces == "[]"


def test_without_a_folder_runs_are_in_memory(tmp_path: Path) -> None:
    """A script that sets the address itself and has no launcher, or a full disk, logs on."""
    script = f"import os\nos.mkdir({str(tmp_path / 'mlflow.jsonl')!r})\n{NESTED}"
    training = train(script, tmp_path)
    assert len(training.values()) == 307
    assert "the hook into mlflow failed (IsADirectoryError" in str(training.caught.sentence())


@pytest.mark.parametrize("broken", ["mlflow", "mlflow_store"])
def test_another_version_keeps_its_values_itself(broken: str, tmp_path: Path) -> None:
    """Where trainwire's store cannot be made, MLflow's own is used, and the job's log has the reason."""
    script = f"""
        import sys
        sys.modules["trainwire_hooks.{broken}"] = None
        import mlflow
        with mlflow.start_run() as run:
            mlflow.log_param("lr", 0.1)
        print(mlflow.get_run(run.info.run_id).data.params)
        """
    training = train(script, tmp_path)
    assert training.output == "{'lr': '0.1'}\n"
    assert (tmp_path / "mlflow.db").exists()
    assert "the hook into mlflow" in str(training.caught.sentence())


HOOKED = """
import mlflow
from trainwire.testing import RecordedRun
with RecordedRun(42) as run:
    run.hook("mlflow")
    with mlflow.start_run():
        mlflow.log_metric("loss", 1, step=2)
    print([(point.step, point.values) for point in run.points])
"""


@pytest.mark.parametrize("launcher", [True, False])
def test_a_run_takes_what_its_process_logs(launcher: bool, tmp_path: Path) -> None:
    """With `run.hook("mlflow")` the values are the run's, with and without the launcher, also after the import."""
    environ = {"PYTHONPATH": os.pathsep.join([str(CARRIER), str(ROOT)] if launcher else [str(ROOT)])}
    training = train(HOOKED, tmp_path, **environ, **({} if launcher else {SOCKET_VARIABLE: ""}))
    assert training.output == "[(2, {'loss': 1.0})]\n"
    assert not training.run.points


WITH_RUN = """
import os, mlflow, trainwire_hooks
{first}
trainwire_hooks.announce_run()  # as `Run` does
with mlflow.start_run():
    mlflow.log_metric("after", 1)
"""


@pytest.mark.parametrize(
    ("first", "names"),
    [("", set()), ("with mlflow.start_run(): mlflow.log_metric('before', 1)", {"before", "after"})],
)
def test_no_value_is_lost_beside_a_run(first: str, names: set[str], tmp_path: Path) -> None:
    """In a process with a `Run` MLflow keeps its values itself, unless it has begun to send them to trainwire."""
    training = train(WITH_RUN.format(first=first), tmp_path)
    assert (tmp_path / "mlflow.db").exists() == (not names)
    assert {name.rpartition("/")[2] for name, _ in training.values()} == names


def test_after_the_launch_mlflow_keeps_its_values(tmp_path: Path) -> None:
    """A process that has inherited the address and outlives the launcher, or is elsewhere, loses nothing."""
    script = "import mlflow\nwith mlflow.start_run(): mlflow.log_metric('loss', 1)"
    gone = str(tmp_path / "gone" / "hooks")
    train(script, tmp_path, MLFLOW_TRACKING_URI="trainwire:", **{SOCKET_VARIABLE: gone})
    assert (tmp_path / "mlflow.db").exists()


def test_a_run_that_is_open_at_the_end_ends_with_its_process(tmp_path: Path) -> None:
    """MLflow ends it while Python exits, and that is still sent."""
    training = train("import mlflow\nmlflow.start_run()\nmlflow.log_metric('loss', 1)", tmp_path)
    assert training.values() == {("loss", 0): 1}
    assert "ended: FINISHED" in training.run.text
