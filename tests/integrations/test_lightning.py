"""Trainings with the real Lightning `Trainer`, on a model of a few weights."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import pytest

from tests.factories import one, rows
from tests.integrations.conftest import REASON, run_script
from trainwire.schemas.tables import training_checkpoints, training_jobs, training_logs, training_metrics
from trainwire.testing import RecordedRun
from trainwire.workers.resources import Resources

pytest.importorskip("torch", reason=REASON)
pytest.importorskip("lightning", reason=REASON)

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger

from trainwire.integrations.lightning import TrainwireCheckpoint, TrainwireLogger

pytestmark = pytest.mark.filterwarnings("default")  # frameworks use deprecated parts of each other


class Tiny(lightning.LightningModule):
    """A linear model that logs its losses."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.layer = torch.nn.Linear(4, 1)

    def loss(self, batch: Any) -> Any:
        """Return the squared error."""
        x, y = batch
        return torch.nn.functional.mse_loss(self.layer(x).squeeze(-1), y)

    def training_step(self, batch: Any) -> Any:
        """Log every step's loss."""
        loss = self.loss(batch)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any) -> None:
        """Log the epoch's loss."""
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: Any) -> None:
        """Log the loss of the test."""
        self.log("test_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        """Return plain gradient descent."""
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def batches() -> Any:
    """Return four batches that a linear model can learn."""
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x.sum(1)), batch_size=8)


def fit(folder: Path, logger: Any, callbacks: list[Any], epochs: int = 2, lr: float = 0.1) -> Any:
    """Train and return the Trainer."""
    trainer = lightning.Trainer(
        max_epochs=epochs,
        logger=logger,
        callbacks=callbacks,
        default_root_dir=folder,
        log_every_n_steps=2,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(Tiny(lr), batches(), batches())
    return trainer


def test_values_logged_by_modules_are_reported(run: RecordedRun, tmp_path: Path) -> None:
    """Values have their step and the running epoch, counted from 1; hyperparameters are the run's params."""
    fit(tmp_path, TrainwireLogger(run), [])
    training = [point for point in run.points if "loss" in point.values]
    assert [(point.epoch, point.step) for point in training] == [(1, 1), (1, 3), (2, 5), (2, 7)]
    assert [point.epoch for point in run.points if "val_loss" in point.values] == [1, 2]
    assert "epoch" not in run.names
    assert run.params == {"lr": 0.1}
    progress = run.reported_progress
    assert (progress.current_epoch, progress.total_epochs, progress.progress_percent) == (2, 2, 100.0)


def test_values_are_those_of_lightnings_own_file(run: RecordedRun, tmp_path: Path) -> None:
    """Each value of Lightning's `CSVLogger` is reported with its step, to the last digit, and no other."""
    fit(tmp_path, [TrainwireLogger(run), CSVLogger(tmp_path, "csv", "")], [])
    for name in ("loss", "val_loss"):
        reported = [(point.step, point.values[name]) for point in run.points if name in point.values]
        assert reported == csv_values(tmp_path / "csv", name)
    assert run.names == ["loss", "val_loss"]


def test_a_test_after_the_training_begins_no_epoch(run: RecordedRun, tmp_path: Path) -> None:
    """Values of a test have the number of trained epochs, from which the next training continues."""
    trainer = fit(tmp_path, TrainwireLogger(run), [])
    trainer.test(dataloaders=batches(), verbose=False)
    (tested,) = [point for point in run.points if "test_loss" in point.values]
    assert tested.epoch == run.reported_progress.current_epoch == 2
    trainer.fit_loop.max_epochs = 3
    trainer.fit(trainer.lightning_module, batches(), batches())
    assert run.points[-1].epoch == run.reported_progress.current_epoch == 3


def test_a_module_can_log_lines(run: RecordedRun) -> None:
    """The logger's experiment is the run."""
    TrainwireLogger(run).experiment.log("from a module")
    run.assert_logged("from a module")


def test_saved_files_are_reported(run: RecordedRun, tmp_path: Path) -> None:
    """With the arguments of `ModelCheckpoint`: the best with its monitored metric, and the last one."""
    checkpoint = TrainwireCheckpoint(run, monitor="val_loss", save_last=True)
    fit(tmp_path, TrainwireLogger(run), [checkpoint])
    assert [saved.kind for saved in run.checkpoints] == ["best", "last", "best", "last"]
    best = run.checkpoints[2]
    assert best.uri == checkpoint.best_model_path
    assert Path(best.uri).parent == tmp_path / "trainwire" / "job_42" / "checkpoints"
    assert (best.epoch, best.step) == (2, 8)
    assert (best.metrics or {})["val_loss"] == pytest.approx(run.values("val_loss")[1])
    assert best.size_bytes == Path(best.uri).stat().st_size


def test_a_file_that_is_not_the_best_is_the_last(run: RecordedRun, tmp_path: Path) -> None:
    """Without a monitored metric, or if it is worse, the newest file is not reported as the best."""
    fit(tmp_path / "a", False, [TrainwireCheckpoint(run)])
    worse = TrainwireCheckpoint(run, monitor="val_loss", mode="max", save_top_k=-1)
    fit(tmp_path / "b", False, [worse])
    assert [saved.kind for saved in run.checkpoints] == ["last", "last", "best", "last"]


def test_a_training_that_fails_is_a_failed_run(tmp_path: Path) -> None:
    """Lightning raises the exception again, and the run's block reports the failure."""
    run = RecordedRun()
    with pytest.raises(TypeError), run:
        fit(tmp_path, TrainwireLogger(run), [], lr="fast")  # type: ignore[arg-type]
    run.assert_failed("TypeError")


SIGNALLED = """
import os, signal, sys
from tests.integrations.test_lightning import Tiny, batches
import lightning
from lightning.pytorch.callbacks import Callback, OnExceptionCheckpoint
from lightning.pytorch.loggers import CSVLogger
from trainwire import Run
from trainwire.integrations.lightning import TrainwireCheckpoint, TrainwireLogger

class Signalled(Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 5:
            os.kill(os.getpid(), getattr(signal, sys.argv[1]))

with Run(42) as run:
    trainer = lightning.Trainer(
        max_epochs=3, logger=[TrainwireLogger(run), CSVLogger(".", "csv", "")], log_every_n_steps=1,
        callbacks=[Signalled(), OnExceptionCheckpoint(".", "saved"), TrainwireCheckpoint(run, dirpath="epochs")],
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )
    trainer.fit(Tiny(), batches(), batches())
    run.log("trained")
"""
SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NODELIST": "localhost",
}


@pytest.mark.parametrize(("number", "is_slurm"), [("SIGTERM", False), ("SIGTERM", True), ("SIGUSR1", True)])
def test_a_later_sigterm_handler_of_lightning_decides(
    resources: Resources, tmp_path: Path, number: str, is_slurm: bool
) -> None:
    """SIGTERM has it save its checkpoint and end with 0, SLURM's SIGUSR1 has the job queued again.

    The job is completed with the process; stored are the values that Lightning's own CSV file has, and its files.
    """
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/queued\n')
    scontrol.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | (SLURM if is_slurm else {})
    assert run_script(SIGNALLED, number, resources=resources, folder=tmp_path, **env) == 0
    is_preempted = number == "SIGTERM"
    assert bool(list(tmp_path.glob("saved*"))) == is_preempted
    assert (tmp_path / "queued").exists() == (not is_preempted)

    job = one(resources.engine, training_jobs, id=42)
    assert (job["status"], job["exit_code"], job["error_message"]) == (
        "completed",
        0 if is_preempted else None,
        None,
    )
    assert rows(resources.engine, training_logs, "content") == ([] if is_preempted else ["trained"])
    stored = rows(resources.engine, training_metrics, "step", "loss")
    assert [(step, loss) for step, loss in stored if loss is not None] == csv_values(tmp_path / "csv", "loss")
    saved = [f"{path}" for path in sorted((tmp_path / "epochs").iterdir())]
    assert rows(resources.engine, training_checkpoints, "uri")[-1:] == saved


def csv_values(folder: Path, name: str) -> list[tuple[int, float]]:
    """Return the steps and values of a metric in the file of Lightning's `CSVLogger`."""
    with (folder / "metrics.csv").open() as file:
        return [(int(row["step"]), float(row[name])) for row in csv.DictReader(file) if row[name]]


def test_a_request_to_stop_ends_fit_after_the_batch(run: RecordedRun, tmp_path: Path) -> None:
    """`fit` ends after the batch, with its last checkpoint, and the run is stopped."""

    class Asks(lightning.Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 5:
                run.request_stop("anna")

    checkpoint = TrainwireCheckpoint(run, dirpath=str(tmp_path / "kept"), save_last=True)
    trainer = fit(tmp_path, TrainwireLogger(run), [Asks(), checkpoint], epochs=50)
    assert 6 <= trainer.global_step <= 8
    assert run.checkpoints
    run.finish()
    assert run.completion is not None
    assert run.completion.outcome == "stopped"
