"""Unchanged trainings under the launcher's hooks: each value is compared with the library's own files."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.factories import one, rows
from tests.integrations.conftest import REASON, run_script
from tests.processes import ROOT
from trainwire.cli.transfer.messages import messages_of
from trainwire.cli.transfer.readers.wandb_runs import wandb_runs
from trainwire.cli.transfer.runs import SourceRun, Tally
from trainwire.ingest.hooks.caught import Caught
from trainwire.ingest.hooks.listener import HookListener
from trainwire.schemas.tables import training_jobs, training_logs, training_metrics
from trainwire.schemas.wire.messages import Completion, Metrics
from trainwire.testing import RecordedRun
from trainwire.workers.resources import Resources

pytest.importorskip("tensorboard", reason=REASON)
pytest.importorskip("tensorboardX", reason=REASON)
pytest.importorskip("wandb", reason=REASON)
pytest.importorskip("torch", reason=REASON)

pytestmark = pytest.mark.filterwarnings("default")

TORCH = """
from torch.utils.tensorboard import SummaryWriter
import torch
writer = SummaryWriter("runs/digits")
for step in range(300):
    writer.add_scalar("loss/train", 1 / (step + 1), step)
    writer.add_scalar("lr", torch.tensor(0.1), step, new_style=True)
writer.add_scalar("loss/train", float("nan"), 300)
writer.add_histogram("weights", torch.randn(100), 1)
writer.add_image("picture", torch.zeros(3, 300, 300), 1)
writer.add_hparams({"lr": 0.1, "optimizer": "adam", "shuffle": True}, {"accuracy": 0.5})
"""
TENSORBOARD_X = (
    TORCH.replace("torch.utils.tensorboard", "tensorboardX")
    .replace(", new_style=True", "")
    .replace("torch.tensor(0.1)", "0.1")
)
LIGHTNING = """
import tests.integrations.conftest
import lightning, torch
from torch.utils.data import DataLoader, TensorDataset

class Tiny(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
    def training_step(self, batch):
        loss = self.layer(batch[0]).mean()
        self.log("loss", loss)
        return loss
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

data = DataLoader(TensorDataset(torch.randn(64, 4)), batch_size=4)
trainer = lightning.Trainer(max_epochs=2, log_every_n_steps=1, accelerator="cpu", enable_progress_bar=False)
trainer.fit(Tiny(), data)
"""
TRANSFORMERS = """
from pathlib import Path
from tests.integrations.test_huggingface import Tiny, data
import transformers
arguments = transformers.TrainingArguments(
    output_dir="out", num_train_epochs=1, logging_steps=1, report_to="all", use_cpu=True, disable_tqdm=True,
    save_strategy="no",
)
transformers.Trainer(model=Tiny(), args=arguments, train_dataset=data()).train()
"""
WANDB = """
import numpy, wandb
run = wandb.init(project="digits", config={"lr": 0.1, "layers": [8, 8]})
for step in range(200):
    run.log({"loss": 1 / (step + 1)}, commit=False)
    run.log({"accuracy": numpy.float32(step / 200)})
run.log({"late": 1.0, "bad": float("nan"), "nested": {"a": 1, "b": {"c": 2}}}, step=500)
run.log({"out of order": 1}, step=3)
wandb.log({"picture": wandb.Image(numpy.zeros((4, 4, 3))), "text": "words", "after": True})
run.config.update({"epochs": 3})
run.summary["best"] = 0.99
"""


@pytest.fixture
def run() -> RecordedRun:
    """Give a run in memory."""
    return RecordedRun(42)


def train(script: str, run: RecordedRun, folder: Path, **environ: str) -> Caught:
    """Run a script with the hooks in its Python, and return the hooks' record."""
    caught = Caught(run, lambda _: run)
    listener = HookListener(folder, caught)
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"} | environ
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    environment |= listener.environment(environment)
    command = [sys.executable, "-c", script]
    try:
        subprocess.run(command, cwd=folder, env=environment, check=True, timeout=280)
    finally:
        listener.close(60)
    return caught


def event_values(folder: Path) -> dict[tuple[str, int], float]:
    """Return the scalars of all event files below a folder, as TensorBoard itself reads them."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader  # noqa: PLC0415
    from tensorboard.util import tensor_util  # noqa: PLC0415

    values: dict[tuple[str, int], float] = {}
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    values[value.tag, event.step] = float(tensor_util.make_ndarray(value.tensor))
    return values


def caught_values(run: RecordedRun) -> dict[tuple[str, int], float]:
    """Return the values of the run's points, by name and step."""
    return {
        (name, point.step or 0): float(number) for point in run.points for name, number in point.values.items()
    }


@pytest.mark.parametrize("script", [TORCH, TENSORBOARD_X], ids=["torch", "tensorboardX"])
def test_scalars_are_those_of_the_event_file(script: str, run: RecordedRun, tmp_path: Path) -> None:
    """Every scalar has its exact step and value; other records are counted and named."""
    caught = train(script, run, tmp_path)
    expected = event_values(tmp_path)
    found = {(re.sub(r"^\d+\.\d+/", "", name), step): value for (name, step), value in caught_values(run).items()}
    assert len(expected) == 602
    assert found == pytest.approx(expected, abs=0, rel=0, nan_ok=True)
    assert run.params == {"lr": 0.1, "optimizer": "adam", "shuffle": True}
    assert "1 of histogram" in str(caught.sentence())
    assert "1 of image" in str(caught.sentence())


def test_lightning_with_its_default_logger(run: RecordedRun, tmp_path: Path) -> None:
    """The values that Lightning writes to its event file are reported."""
    pytest.importorskip("lightning", reason=REASON)
    train(LIGHTNING, run, tmp_path)
    expected = event_values(tmp_path)
    assert len(expected) > 32
    assert caught_values(run) == pytest.approx(expected, abs=0, rel=0)


def test_transformers_reports_to_all(run: RecordedRun, tmp_path: Path) -> None:
    """The Trainer's values arrive by its TensorBoard and W&B callbacks, each with its step."""
    pytest.importorskip("transformers", reason=REASON)
    train(TRANSFORMERS, run, tmp_path)
    expected = event_values(tmp_path)
    found = caught_values(run)
    assert len([name for name, _ in expected if name == "train/loss"]) == 4
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=0, rel=1e-6)


def wandb_records(path: Path) -> Iterator[bytes]:
    """Yield the records of a `.wandb` file: LevelDB's log format, after a header of 7 bytes."""
    data, at, pending = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32 * 1024 - at % (32 * 1024)
        if left < 7:  # a block ends with zeros where no header fits
            at += left
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        pending += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in {1, 4}:  # a whole record, or the last part of one
            yield pending
            pending = b""


def wandb_values(folder: Path) -> dict[tuple[str, int], float]:
    """Return the numbers of a `.wandb` file, by name and step."""
    from wandb.proto import wandb_internal_pb2  # noqa: PLC0415

    (path,) = folder.rglob("*.wandb")
    values: dict[tuple[str, int], float] = {}
    for data in wandb_records(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        items = {
            ".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item
        }
        values |= {(name, items["_step"]): value for name, value in _numbers(items)}
    return values


def _numbers(items: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in items.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}.") if "_type" not in value else ()
        elif not name.startswith(("_", "picture")) and (isinstance(value, int | float) or value == "NaN"):
            yield f"{prefix}{name}", float(value)


def assert_values_of_wandb(run: RecordedRun, caught: Caught, folder: Path) -> None:
    """Compare what was caught of `WANDB` with the `.wandb` file of a run of it in `folder`."""
    expected = wandb_values(folder)
    assert len(expected) == 405
    assert caught_values(run) == pytest.approx(expected, abs=0, rel=1e-7, nan_ok=True)
    assert run.params == {"lr": 0.1, "layers": [8, 8], "epochs": 3}
    assert caught.summary == {"best": 0.99}
    for part in ("1 of Image", "1 of str", "1 of a step that has passed"):
        assert part in str(caught.sentence())


def test_values_are_those_of_the_wandb_file(run: RecordedRun, tmp_path: Path) -> None:
    """Steps without a number, explicit ones, `commit=False` and NaN equal those of W&B, which works unchanged."""
    caught = train(WANDB, run, tmp_path)
    assert_values_of_wandb(run, caught, tmp_path)


@pytest.mark.parametrize("encoding", ["json", "json,typed"])
def test_an_import_gives_the_values_of_the_wandb_file(tmp_path: Path, encoding: str) -> None:
    """Each number of W&B's history has its step and value, by W&B's own decoder; all else is counted."""
    train(WANDB, RecordedRun(1), tmp_path, WANDB_X_HISTORY_VALUE_ENCODING=encoding)
    (source,) = wandb_runs(tmp_path, None, "")
    assert isinstance(source, SourceRun)
    tally = Tally()
    bodies = [message.body for message in messages_of(source, tally)]
    points = [point for body in bodies if isinstance(body, Metrics) for point in body.points]
    found = {
        (name, point.step): value
        for point in points
        if point.step is not None
        for name, value in point.values.items()
    }
    assert found == pytest.approx(wandb_values(tmp_path), abs=0, rel=0, nan_ok=True)
    assert [body.params for body in bodies if isinstance(body, Metrics) and body.params][-1] == {
        "lr": 0.1, "layers": [8, 8], "epochs": 3,
    }  # fmt: skip
    (end,) = (body for body in bodies if isinstance(body, Completion))
    assert (end.exit_code, (end.final_metrics or {})["best"]) == (0, 0.99)
    assert tally.skipped["points"] == {"image-file: not a number": 1, "text: not a number": 1}
    assert (tally.taken["files"], tally.problems) == (1, [])


REPLACED = """
import os, sys
reached = []
def watch(event, arguments):
    if event == "socket.getaddrinfo" or (event == "subprocess.Popen" and arguments[0] != "git"):
        reached.append((event, arguments[0]))
sys.addaudithook(watch)
import wandb
assert wandb.login()
with wandb.init(project="digits", mode="online", config={"lr": 0.1}) as run:
    assert wandb.init() is run
    assert [wandb.log({"loss": 0.5}) for _ in range(3)] and run.step == 3
    run.define_metric("loss", summary="min")
    wandb.summary["best"] = 0.9
    assert (run.summary["best"], run.summary["loss"]) == (0.9, 0.5)
    wandb.watch(None)
    with open(os.path.join(run.dir, "model.txt"), "w") as file:
        file.write("weights")
    artifact = wandb.Artifact("model", type="model")
    artifact.add_file(file.name)
    run.log_artifact(artifact)
assert wandb.run is None
second = wandb.init(settings=wandb.Settings(mode="online"))
wandb.config.batch = 32
second.log({"second/loss": 0.25})
wandb.finish()
assert reached == [], reached
"""


def test_replaced_wandb_gives_the_values_of_its_offline_mode(run: RecordedRun, tmp_path: Path) -> None:
    """The same script gives each value of the `.wandb` file, with the same step, and leaves no files."""
    offline, replaced = tmp_path / "offline", tmp_path / "replaced"
    offline.mkdir()
    replaced.mkdir()
    train(WANDB, RecordedRun(1), offline)
    caught = train(WANDB, run, replaced, TRAINWIRE_WANDB="replace")
    assert_values_of_wandb(run, caught, offline)
    assert [path.name for path in replaced.iterdir()] == ["hooks"]


def test_replaced_wandb_needs_no_account(run: RecordedRun, tmp_path: Path) -> None:
    """Logins, several runs, files and artifacts work without network, a service or a folder `wandb`."""
    caught = train(REPLACED, run, tmp_path, TRAINWIRE_WANDB="replace", WANDB_MODE="online", WANDB_API_KEY="")
    assert [(point.step, point.values) for point in run.points] == [
        (0, {"loss": 0.5}), (1, {"loss": 0.5}), (2, {"loss": 0.5}), (0, {"second/loss": 0.25}),
    ]  # fmt: skip
    assert run.params == {"lr": 0.1, "batch": 32}
    assert caught.summary == {"best": 0.9}
    assert "1 of log_artifact from wandb" in str(caught.sentence())
    assert not (tmp_path / "wandb").exists()


def test_transformers_with_replaced_wandb(run: RecordedRun, tmp_path: Path) -> None:
    """The Trainer's callback reports as to an account of W&B."""
    pytest.importorskip("transformers", reason=REASON)
    script = TRANSFORMERS.replace('report_to="all"', 'report_to="wandb"')
    caught = train(script, run, tmp_path, TRAINWIRE_WANDB="replace", WANDB_MODE="online")
    assert len([name for name, _ in caught_values(run) if name == "train/loss"]) == 4
    assert "failed" not in str(caught.sentence())
    assert not (tmp_path / "wandb").exists()


def test_wandb_is_left_alone(run: RecordedRun, tmp_path: Path) -> None:
    """With `off` nothing is taken from W&B, which works."""
    caught = train(WANDB, run, tmp_path, TRAINWIRE_WANDB="off")
    assert (run.points, caught.sentence()) == ([], None)
    assert len(wandb_values(tmp_path)) == 405


LAUNCHED = """
import subprocess, sys
launcher = [sys.executable, "-m", "trainwire.ingest", "--job-id", "42", "--"]
sys.exit(subprocess.call([*launcher, sys.executable, "-c", {script!r}]))
"""


def test_a_launched_training_is_stored(resources: Resources, tmp_path: Path) -> None:
    """An unchanged script under the launcher has its metrics and parameters in Postgres."""
    assert run_script(LAUNCHED.format(script=TENSORBOARD_X), resources=resources, folder=tmp_path) == 0
    job = one(resources.engine, training_jobs, id=42)
    assert (job["status"], job["params"]["optimizer"]) == ("completed", "adam")
    assert len(rows(resources.engine, training_metrics, "step")) == 602
    last = rows(resources.engine, training_logs, "content")[-1]
    assert "caught 602 values of 3 metrics from tensorboard" in str(last)


def test_a_launched_training_needs_no_account(resources: Resources, tmp_path: Path) -> None:
    """`--wandb replace` has the values of an unchanged script in Postgres."""
    script = LAUNCHED.replace('"42", "--"', '"42", "--wandb", "replace", "--"').format(script=REPLACED)
    assert run_script(script, resources=resources, folder=tmp_path, WANDB_MODE="online") == 0
    job = one(resources.engine, training_jobs, id=42)
    assert (job["status"], job["params"], job["final_metrics"]["best"]) == (
        "completed",
        {"lr": 0.1, "batch": 32},
        0.9,
    )
    assert rows(resources.engine, training_metrics, "step") == [0, 1, 2, 0]
    assert not (tmp_path / "wandb").exists()
