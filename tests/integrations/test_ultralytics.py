"""Trainings with the real Ultralytics: a small classifier on images made here."""

from __future__ import annotations

import copy
import csv
import pickle
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from tests.integrations.conftest import REASON
from trainwire.testing import RecordedRun

pytest.importorskip("ultralytics", reason=REASON)

import ultralytics
from PIL import Image

from trainwire.integrations.ultralytics import _Reporter, add_callbacks

pytestmark = pytest.mark.filterwarnings("default")  # frameworks use deprecated parts of each other


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Give a folder of dark and bright images, in the layout of a classification data set."""
    chance = np.random.default_rng(1)
    for part in ("train", "val"):
        for name, brightness in (("dark", 0), ("bright", 200)):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for number in range(4):
                pixels = chance.integers(brightness, brightness + 50, size=(32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture
def trained(run: RecordedRun, images: Path, tmp_path: Path) -> Any:
    """Give the trainer of a two-epoch training that was reported to `run`."""
    return train(run, images, tmp_path)


def train(run: RecordedRun, images: Path, folder: Path, **callbacks: Any) -> Any:
    """Train two epochs with further callbacks; return the trainer."""
    model = ultralytics.YOLO("yolo11n-cls.yaml")
    add_callbacks(model, run)
    for event, callback in callbacks.items():
        model.add_callback(event, callback)
    model.train(
        data=str(images),
        epochs=2,
        imgsz=32,
        batch=4,
        device="cpu",
        workers=0,
        plots=False,
        project=str(folder / "runs"),
        verbose=False,
    )
    return model.trainer


def test_a_training_is_reported(run: RecordedRun, trained: Any) -> None:
    """Each epoch is reported once, with losses, learning rates and validation; so is each saved file."""
    assert [point.epoch for point in run.points] == [1, 2]
    assert {"train/loss", "val/loss", "metrics/accuracy_top1", "lr/pg0", "learning_rate"} <= set(run.names)
    progress = run.reported_progress
    assert (progress.total_epochs, progress.progress_percent) == (2, 100.0)
    assert [saved.epoch for saved in run.checkpoints if saved.kind == "last"] == [1, 2]
    assert run.assert_checkpoint("last").uri == str(trained.last)
    best = run.assert_checkpoint("best")
    assert best.uri == str(trained.best)
    assert "metrics/accuracy_top1" in (best.metrics or {})
    final = run.checkpoints[-1]
    assert (final.kind, final.uri, final.size_bytes) == ("final", str(trained.best), trained.best.stat().st_size)


def test_values_are_those_of_ultralytics_own_file(run: RecordedRun, trained: Any) -> None:
    """Each value of results.csv is reported; the file has five digits."""
    with trained.csv.open() as file:
        logged = list(csv.DictReader(file))
    for name in set(logged[0]) - {"epoch", "time"}:
        assert run.values(name) == pytest.approx([float(row[name]) for row in logged], rel=1e-4)


def test_a_training_that_fails_is_a_failed_run(images: Path, tmp_path: Path) -> None:
    """The exception passes through `train` and fails the run; earlier epochs are reported."""

    def stop(trainer: Any) -> None:
        if trainer.epoch == 1:
            raise RuntimeError("out of memory")

    run = RecordedRun()
    with pytest.raises(RuntimeError), run:
        train(run, images, tmp_path, on_train_epoch_start=stop)
    run.assert_failed("out of memory")
    assert [point.epoch for point in run.points] == [1]


def test_callbacks_can_be_handed_to_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callbacks that a multi-GPU training pickles report to the same job and attempt."""
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    reporter = _Reporter(RecordedRun(42, attempt=3))
    there = pickle.loads(cloudpickle.dumps(reporter.report_epoch)).__self__
    there._run.finish(timeout_s=0)
    assert (there._run.job_id, there._run.attempt) == (42, 3)
    assert there._run is not reporter._run


def test_a_copied_model_reports_to_the_same_run(run: RecordedRun) -> None:
    """A copy of the model in this process begins no run of its own."""
    model = ultralytics.YOLO("yolo11n-cls.yaml")
    add_callbacks(model, run)
    callback = copy.deepcopy(model).callbacks["on_model_save"][-1]
    assert callback.__self__._run is run


def test_a_request_to_stop_ends_the_training(run: RecordedRun, images: Path, tmp_path: Path) -> None:
    """The training ends in its first epoch, with its last checkpoint, and the run is stopped."""
    trainer = train(run, images, tmp_path, on_train_batch_start=lambda _trainer: run.request_stop("anna"))
    assert trainer.epoch == 0
    assert run.assert_checkpoint("final")
    run.finish()
    assert run.completion is not None
    assert run.completion.outcome == "stopped"
