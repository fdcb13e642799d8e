"""Trainings with the real Keras, on a model of a few weights and the backend of KERAS_BACKEND, else torch."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integrations.conftest import REASON
from trainwire.testing import RecordedRun

os.environ.setdefault("KERAS_BACKEND", "torch")
pytest.importorskip(os.environ["KERAS_BACKEND"], reason=REASON)
pytest.importorskip("keras", reason=REASON)

import keras

from trainwire.integrations.keras import TrainwireCallback, TrainwireCheckpoint

pytestmark = pytest.mark.filterwarnings("default")  # frameworks use deprecated parts of each other


def fit(*callbacks: Any, epochs: int = 2) -> Any:
    """Train four batches an epoch; return Keras's own history."""
    keras.utils.set_random_seed(1)
    x = np.random.default_rng(1).normal(size=(32, 4))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(optimizer=keras.optimizers.SGD(0.05), loss="mse", metrics=["mae"])
    data = (x, x.sum(axis=1))
    return model.fit(
        *data, batch_size=8, epochs=epochs, validation_data=data, callbacks=list(callbacks), verbose=0
    ).history


def test_each_epoch_is_reported(run: RecordedRun) -> None:
    """The values of Keras' history are reported with epoch, step and learning rate, and the progress."""
    history = fit(TrainwireCallback(run))
    assert [(point.epoch, point.step) for point in run.points] == [(1, 4), (2, 8)]
    for name in ("loss", "mae", "val_loss", "val_mae"):
        assert run.values(name) == pytest.approx(history[name])
    assert run.values("learning_rate") == pytest.approx([0.05, 0.05])
    assert run.reported_progress.progress_percent == 100.0


def test_values_are_those_of_keras_own_file(run: RecordedRun, tmp_path: Path) -> None:
    """Each value of Keras's `CSVLogger` is reported, to the last digit."""
    fit(TrainwireCallback(run), keras.callbacks.CSVLogger(str(tmp_path / "log.csv")))
    with (tmp_path / "log.csv").open() as file:
        logged = list(csv.DictReader(file))
    for name in ("loss", "mae", "val_loss", "val_mae"):
        assert run.values(name) == [float(row[name]) for row in logged]
    assert run.names == sorted({"learning_rate", *logged[0]} - {"epoch"})


def test_a_training_that_fails_is_a_failed_run() -> None:
    """The exception passes through `fit` and fails the run; earlier values are reported."""

    def stop(epoch: int, _logs: Any) -> None:
        if epoch == 1:
            raise RuntimeError("out of memory")

    run = RecordedRun()
    with pytest.raises(RuntimeError), run:
        fit(TrainwireCallback(run), keras.callbacks.LambdaCallback(on_epoch_begin=stop))
    run.assert_failed("out of memory")
    assert [point.epoch for point in run.points] == [1]


def test_a_scheduled_learning_rate_is_reported(run: RecordedRun) -> None:
    """The reported rate is the one that the epoch was trained with."""
    fit(keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1)), TrainwireCallback(run))
    assert run.values("learning_rate") == pytest.approx([0.1, 0.05])


def test_saved_files_are_reported(run: RecordedRun, tmp_path: Path) -> None:
    """Saved files are reported with the arguments of `ModelCheckpoint` and with their size."""
    path = str(tmp_path / "epoch{epoch}.keras")
    fit(TrainwireCheckpoint(run, path))
    assert [(saved.kind, saved.epoch, saved.step) for saved in run.checkpoints] == [("last", 1, 4), ("last", 2, 8)]
    assert [saved.uri for saved in run.checkpoints] == [path.format(epoch=1), path.format(epoch=2)]
    assert all(saved.size_bytes == Path(saved.uri).stat().st_size for saved in run.checkpoints)


def test_only_the_best_is_reported(run: RecordedRun, tmp_path: Path) -> None:
    """With save_best_only an epoch that is no better saves nothing, and nothing is reported."""
    path = tmp_path / "best.keras"
    history = fit(TrainwireCheckpoint(run, path, save_best_only=True, mode="max"), epochs=3)
    (best,) = run.checkpoints  # a falling loss is worse to this one
    assert (best.uri, best.kind, best.epoch) == (str(path), "best", 1)
    assert (best.metrics or {})["val_loss"] == pytest.approx(history["val_loss"][0])


def test_keras_does_not_wait_for_batches() -> None:
    """The callback has no hooks for batches, so Keras does not wait for the device after each."""
    hooks = {name for name in vars(TrainwireCallback) if name.startswith("on_")}
    assert hooks == {"on_train_begin", "on_train_end", "on_epoch_end"}


def test_a_request_to_stop_ends_fit_after_the_batch(run: RecordedRun) -> None:
    """`fit` ends in the middle of the first epoch, reports it, and the run is stopped."""
    batches: list[int] = []

    class Asks(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002 - Keras's signature
            batches.append(batch)
            if batch == 1:
                run.request_stop("anna")

    fit(TrainwireCallback(run), Asks(), epochs=50)
    assert len(batches) < 6
    assert [point.epoch for point in run.points] == [1]
    run.finish()
    assert run.completion is not None
    assert run.completion.outcome == "stopped"
