"""A user's script with the integrations, checked by pyright beside the frameworks' own types."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.integrations.conftest import REASON
from tests.processes import ROOT
from tests.type_checkers import checked, write_scripts

for framework in ("lightning", "transformers", "keras", "ultralytics"):
    pytest.importorskip(framework, reason=REASON)

SCRIPT = """
from typing import Any, assert_type

import keras
from lightning import LightningModule, Trainer
from transformers import Trainer as HuggingFaceTrainer
from ultralytics import YOLO

from trainwire import Run
from trainwire.integrations.huggingface import TrainwireCallback
from trainwire.integrations.keras import TrainwireCallback as KerasCallback
from trainwire.integrations.keras import TrainwireCheckpoint as KerasCheckpoint
from trainwire.integrations.lightning import TrainwireCheckpoint, TrainwireLogger
from trainwire.integrations.ultralytics import add_callbacks


def train(run: Run, module: LightningModule, data: Any) -> None:
    logger = TrainwireLogger(run)
    assert_type(logger.experiment, Run)
    checkpoint = TrainwireCheckpoint(run, monitor="val_loss", save_last=True)
    Trainer(logger=logger, callbacks=[checkpoint]).fit(module)
    HuggingFaceTrainer(model=module, callbacks=[TrainwireCallback(run)])
    model = keras.Sequential()
    model.fit(data, callbacks=[KerasCallback(run), KerasCheckpoint(run, "best.keras", save_best_only=True)])
    add_callbacks(YOLO("yolo11n.pt"), run)


def wrong(run: Run) -> None:
    TrainwireLogger("42")  # pyright: ignore[reportArgumentType]
    TrainwireCheckpoint(monitor="val_loss")  # pyright: ignore[reportCallIssue]
    TrainwireCallback()  # pyright: ignore[reportCallIssue]
    KerasCallback(42)  # pyright: ignore[reportArgumentType]
    KerasCheckpoint("best.keras")  # pyright: ignore[reportArgumentType]
    add_callbacks(YOLO("yolo11n.pt"))  # pyright: ignore[reportCallIssue]
"""


def test_pyright_accepts_the_integrations_where_their_frameworks_expect_them(tmp_path: Path) -> None:
    """The logger has Lightning's type, the callback the Trainer's; a missing run is an error."""
    write_scripts(tmp_path, "standard", script=SCRIPT)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    output = checked(tmp_path, env, "basedpyright", "--pythonpath", sys.executable)
    assert output == "0 errors, 0 warnings, 0 notes\n"
