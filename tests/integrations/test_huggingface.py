"""Trainings with the real `transformers.Trainer`, on a model of a few weights."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.factories import one, rows
from tests.integrations.conftest import REASON, run_script
from trainwire.schemas.tables import training_checkpoints, training_jobs, training_metrics
from trainwire.testing import RecordedRun
from trainwire.workers.resources import Resources

pytest.importorskip("torch", reason=REASON)
pytest.importorskip("transformers", reason=REASON)

import torch
import transformers

from trainwire.integrations.huggingface import TrainwireCallback

pytestmark = pytest.mark.filterwarnings("default")  # frameworks use deprecated parts of each other

EXAMPLES = 32


class Tiny(torch.nn.Module):
    """A linear model in the form that the Trainer expects."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def forward(self, x: Any, labels: Any) -> dict[str, Any]:
        """Return loss and logits."""
        logits = self.layer(x).squeeze(-1)
        return {"loss": torch.nn.functional.mse_loss(logits, labels), "logits": logits}


def data() -> list[dict[str, Any]]:
    """Return examples that a linear model can learn."""
    xs = torch.randn(EXAMPLES, 4, generator=torch.Generator().manual_seed(1))
    return [{"x": x, "labels": x.sum()} for x in xs]


def trainer(run: RecordedRun, folder: Path, **arguments: Any) -> Any:
    """Return a Trainer that reports to `run`: eight steps an epoch, two epochs, each with its evaluation."""
    chosen = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "learning_rate": 0.05,
        "logging_steps": 4,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        **arguments,
    }
    return transformers.Trainer(
        model=Tiny(),
        args=transformers.TrainingArguments(**chosen),
        train_dataset=data(),
        eval_dataset=data(),
        callbacks=[TrainwireCallback(run)],
    )


def test_values_logged_by_the_trainer_are_reported(run: RecordedRun, tmp_path: Path) -> None:
    """Losses and evaluations have their step and the running epoch; the progress ends at 100 %."""
    trainer(run, tmp_path).train()
    training = [point for point in run.points if "loss" in point.values]
    assert [(point.epoch, point.step) for point in training] == [(1, 4), (1, 8), (2, 12), (2, 16)]
    assert training[0].values["learning_rate"] > 0
    assert [(point.epoch, point.step) for point in run.points if "eval_loss" in point.values] == [(1, 8), (2, 16)]
    assert "epoch" not in run.names
    progress = run.reported_progress
    assert (progress.current_epoch, progress.total_epochs, progress.progress_percent) == (2, 2, 100.0)


def test_values_are_those_of_the_trainers_own_file(run: RecordedRun, tmp_path: Path) -> None:
    """Each entry of the log in `trainer_state.json` is reported with its step, to the last digit, and no other."""
    trained = trainer(run, tmp_path, logging_steps=1)
    trained.train()
    trained.state.save_to_json(str(tmp_path / "state.json"))
    history = json.loads((tmp_path / "state.json").read_text())["log_history"]
    logged = [
        (entry["step"], {name: value for name, value in entry.items() if name not in ("epoch", "step")})
        for entry in history
    ]
    assert [(point.step, point.values) for point in run.points] == logged


def test_a_training_that_fails_is_a_failed_run(tmp_path: Path) -> None:
    """The exception passes through `train` and fails the run; earlier values are reported."""

    class Stop(transformers.TrainerCallback):
        def on_step_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            if state.global_step == 5:
                raise RuntimeError("out of memory")

    run = RecordedRun()
    failing = trainer(run, tmp_path)
    failing.add_callback(Stop())
    with pytest.raises(RuntimeError), run:
        failing.train()
    run.assert_failed("out of memory")
    assert [point.step for point in run.points] == [4]


SIGNALLED = """
import os, signal, sys
from pathlib import Path
from tests.integrations.test_huggingface import trainer
import transformers
from trainwire import Run

class Signalled(transformers.TrainerCallback):
    def on_step_begin(self, _args, state, _control, **_):
        if state.global_step == 9:
            os.kill(os.getpid(), signal.SIGTERM)

with Run(42) as run:
    training = trainer(run, Path("out"))
    training.add_callback(Signalled())
    training.train()
"""


def test_sigterm_ends_the_training_and_fails_the_job(resources: Resources, tmp_path: Path) -> None:
    """Without a handler of the Trainer the process ends by SIGTERM, and its reported values are stored."""
    assert run_script(SIGNALLED, resources=resources, folder=tmp_path) == -signal.SIGTERM
    job = one(resources.engine, training_jobs, id=42)
    assert (job["status"], job["exit_code"], job["error_message"]) == ("failed", 143, "terminated by SIGTERM")
    stored = rows(resources.engine, training_metrics, "step", "loss")
    assert [step for step, loss in stored if loss is not None] == [4, 8]
    assert rows(resources.engine, training_checkpoints, "uri") == [str(tmp_path / "out" / "checkpoint-8")]


def test_checkpoint_folders_are_reported(run: RecordedRun, tmp_path: Path) -> None:
    """Each epoch's folder exists when it is reported; one that improved is the best, with the metric."""
    trainer(run, tmp_path).train()
    first, second = run.checkpoints
    assert first.uri == str(tmp_path / "checkpoint-8")
    assert (second.uri, second.kind, second.epoch, second.step) == (str(tmp_path / "checkpoint-16"), "best", 2, 16)
    assert second.metrics == {"eval_loss": run.values("eval_loss")[1]}
    assert run.values("eval_loss")[1] < run.values("eval_loss")[0]


def test_a_checkpoint_that_is_not_better_is_the_last(run: RecordedRun, tmp_path: Path) -> None:
    """If the second epoch is worse, its checkpoint is the last one and not the best."""
    trainer(run, tmp_path, greater_is_better=True).train()  # a falling loss is then a worse one
    assert [checkpoint.kind for checkpoint in run.checkpoints] == ["best", "last"]


def test_a_training_by_steps_knows_its_progress(run: RecordedRun, tmp_path: Path) -> None:
    """With max_steps the percentage follows the steps, in the middle of an epoch too."""
    trainer(
        run, tmp_path, max_steps=10, eval_strategy="no", save_strategy="no", load_best_model_at_end=False
    ).train()
    assert run.reported_progress.progress_percent == 100.0
    assert [point.step for point in run.points if "loss" in point.values] == [4, 8]


def test_other_processes_report_nothing(run: RecordedRun, tmp_path: Path) -> None:
    """Only the process of rank 0 reports; the others report nothing."""
    callback = TrainwireCallback(run)
    state = transformers.TrainerState(is_world_process_zero=False, global_step=4, max_steps=16, epoch=0.5)
    args = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    control = transformers.TrainerControl()
    for event in (callback.on_train_begin, callback.on_epoch_end, callback.on_save):
        event(args, state, control)
    callback.on_log(args, state, control, logs={"loss": 1.0})
    assert (run.points, run.checkpoints) == ([], [])


def test_a_request_to_stop_ends_train_after_the_step(run: RecordedRun, tmp_path: Path) -> None:
    """`train` ends after the step, and the run is stopped."""

    class Asks(transformers.TrainerCallback):
        def on_step_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            if state.global_step == 5:
                run.request_stop("anna")

    training = trainer(run, tmp_path, num_train_epochs=50, load_best_model_at_end=False)
    training.add_callback(Asks())
    training.train()
    assert training.state.global_step == 6
    run.finish()
    assert run.completion is not None
    assert run.completion.outcome == "stopped"
