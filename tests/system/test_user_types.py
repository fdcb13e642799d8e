"""A user's script, checked by mypy and pyright against the installed wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Final

import pytest

from tests.processes import ROOT
from tests.type_checkers import checked, write_scripts

ENV: Final = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
"""An environment in which type checkers do not find this source tree."""

RIGHT_USES: Final = """
import logging
import sys
from decimal import Decimal
from pathlib import Path
from typing import assert_type

from trainwire import NotStored, RankTaken, Receipt, RedisAway, Run, StrictError, TrainerSettings
from trainwire.integrations.logging import RunHandler
from trainwire.integrations.system import report_system_metrics
from trainwire.testing import RecordedRun


def train(run: Run, losses: list[float]) -> None:
    run.log("a line", level="INFO", log_type="stderr", epoch=1, step=2)
    run.log({"loss": 0.3}, step=3)
    run.log_lines(["printed"], "stdout", 1_700_000_000_000_000_000)
    for epoch, loss in enumerate(losses, 1):
        run.metric(epoch=epoch, step=10 * epoch, loss=loss, accuracy=None)
        run.metric(values={"val/loss": loss, "share": Decimal("0.5")}, is_warm=True, checkpoint_path=Path("a.pt"))
        run.progress(epoch, total_epochs=len(losses), percent=50.0)
    run.link_mlflow("0123")
    run.checkpoint("s3://bucket/best.pt", "best", epoch=1, step=2, metrics={"loss": 1}, is_best=True)
    run.checkpoint(Path("last.pt"), upload="none")
    with run.capture_output():
        sys.stdout.write("a line")


def main() -> int:
    try:
        with Run(42, "name", params={"lr": 0.1}, tags={"team": "vision"}, total_epochs=2, strict=True) as run:
            assert_type(run, Run)
            assert_type(run.job_id, int)
            assert_type(run.attempt, int)
            assert_type(run.rank, int | None)
            assert_type(run.source, str)
            logging.getLogger().addHandler(RunHandler(run, level="WARNING"))
            report_system_metrics(run, interval_s=5)
            train(run, [0.5, 0.25])
    except (NotStored, RankTaken, RedisAway) as error:
        problem: StrictError = error
        sys.stderr.write(f"{problem}")
        return 1
    receipt = Run.from_env(name="again", settings=TrainerSettings.from_env()).finish(
        "failed", exit_code=3, error=ValueError("bad"), final_metrics={"loss": 0.1}, best_epoch=1, timeout_s=5
    )
    assert_type(receipt, Receipt)
    assert_type(receipt.produced["logs"], int)
    assert_type(receipt.dropped.get("points", 0), int)
    assert_type(receipt.complete, bool)
    assert_type(receipt.unsettled, int)
    return 0


class NamedRun(Run):
    def log_loss(self, loss: float) -> None:
        self.metric(loss=loss)


def test_training() -> None:
    assert_type(NamedRun.from_env(job_id=7), NamedRun)
    with RecordedRun(7, "name", total_epochs=2, params={"lr": 0.1}) as run:
        assert_type(run, RecordedRun)
        train(run, [0.5, 0.25])
    assert_type(run.values("loss"), list[float])
    assert_type(run.names, list[str])
    assert_type(run.text, str)
    assert_type([line.text for line in run.lines], list[str])
    assert_type([point.values for point in run.points], list[dict[str, float]])
    assert_type(run.assert_logged("a line", level="INFO").level, str | None)
    assert_type(run.assert_checkpoint("best").uri, str)
    assert_type(run.assert_completed().exit_code, int | None)
"""

WRONG_USES: Final = """
from trainwire import Run, TrainerSettings
from trainwire.testing import RecordedRun

run = Run("42")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
run = Run(42, parms={})  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Run.from_env(job="42")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Run.from_env(job_id="42")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
RecordedRun(42, parms={})  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
TrainerSettings(redis="localhost")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
run.log()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
run.log("a line", log_type="warning")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
run.log("a line", "stderr")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
run.log_lines(["a line"], "stdout")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
run.metric(0.5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
run.metric(loss="low")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
run.metric(values=[0.5])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
run.metric(values={"loss": "low"})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
run.metric(epoch="first", loss=0.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
run.progress("half")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
run.checkpoint()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
run.checkpoint(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
run.checkpoint("a.pt", upload="later")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
run.checkpoint("a.pt", metrics={"loss": "low"})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
run.finish(timeout_s="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
run.finished  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
run.finish().stored["log"]  # type: ignore[index]  # pyright: ignore[reportArgumentType]
run.finish().stored = {}  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
run.finish()["stored"]  # type: ignore[index]  # pyright: ignore[reportIndexIssue]
RecordedRun(42).assert_checkpoint(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the interpreter of a bare environment with only the wheel and its dependencies."""
    folder = tmp_path_factory.mktemp("user") / "venv"
    venv.create(folder)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run(
        [*pip, "install", "-c", str(ROOT / "constraints.txt"), f"{ROOT}[system]"], check=True, cwd=folder
    )
    return python


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """Give a folder with a user's scripts."""
    write_scripts(tmp_path, "strict", right=RIGHT_USES, wrong=WRONG_USES)
    return tmp_path


def test_mypy_accepts_right_uses_and_refuses_wrong_ones(installed: Path, scripts: Path) -> None:
    """In strict mode each wrong use is an error, else its `type: ignore` would be reported as unused."""
    arguments = ["--strict", "--warn-unreachable", "--python-executable", str(installed), "right.py", "wrong.py"]
    assert checked(scripts, ENV, "mypy", *arguments) == "Success: no issues found in 2 source files\n"


def test_pyright_accepts_right_uses_and_refuses_wrong_ones(installed: Path, scripts: Path) -> None:
    """In strict mode, which also reports unknown types, only wrong uses are errors."""
    output = checked(scripts, ENV, "basedpyright", "--pythonpath", str(installed))
    assert output == "0 errors, 0 warnings, 0 notes\n"
