"""The trainings of the scenarios: each reports the same rows, and some wait meanwhile for the operator's story."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from tests.certify.failpoints import ROOT
from trainwire import Run
from trainwire.ingest.receipt import Receipt
from trainwire.ingest.settings.setting_groups import Vitals
from trainwire.ingest.settings.trainer_settings import TrainerSettings
from trainwire.ingest.uploads import transfer

LINES: Final = [f"line {number}" for number in range(6)]
SITE: Final = Path(__file__).parent / "site"
SHARDS: Final = 3
"""Number of files of an uploaded checkpoint folder."""
UPLOADS: Final = 3
PART_BYTES: Final = 5 * 1024 * 1024
"""The smallest size of a part in S3."""
STALL_AFTER_S: Final = 1.0
FINISH_S: Final = 30.0
"""Seconds for the end of a run, which ends as soon as all is stored; more than a busy machine needs."""
SIGNAL_S: Final = 40.0
"""Seconds for which a training waits for a signal of the story."""
ALERT: Final = "Loss spikes"
ALERT_LINE: Final = f"ALERT: {ALERT}: at step 5"

Train = Callable[[TrainerSettings], Receipt]


def signal_file(folder: Path, name: str) -> Path:
    """Return the file that exists once the story of a run has given the signal `name`."""
    return folder / f"signal-{name}"


def _folder(settings: TrainerSettings) -> Path:
    assert settings.spool.folder is not None
    return Path(settings.spool.folder).parent


def _await_signal(settings: TrainerSettings, name: str) -> None:
    deadline = time.monotonic() + SIGNAL_S
    while not signal_file(_folder(settings), name).exists():
        assert time.monotonic() < deadline, f"no signal {name}"
        time.sleep(0.02)


def _run(settings: TrainerSettings, rank: int | None = None, world_size: int | None = None) -> Run:
    return Run(
        settings.job_id, "certified", settings=settings, rank=rank, world_size=world_size, params={"lr": 0.1}
    )


def _report(run: Run, number: int) -> None:
    run.log(LINES[number], log_type="stderr" if number == 1 else "stdout")
    run.metric(step=number, loss=1 / (number + 1), f1=float(number))


def _checkpoint(run: Run) -> None:
    run.checkpoint("/elsewhere/best.pt", kind="best", step=5, metrics={"loss": 0.5})


def _train(settings: TrainerSettings, rank: int | None = None, world_size: int | None = None) -> Run:
    run = _run(settings, rank, world_size)
    for number in range(len(LINES)):
        _report(run, number)
        if number % 2:
            time.sleep(0.05)
    _checkpoint(run)
    return run


def finished(settings: TrainerSettings) -> Receipt:
    """Train and complete."""
    return _train(settings).finish(timeout_s=FINISH_S)


def failed(settings: TrainerSettings) -> Receipt:
    """Train and fail."""
    return _train(settings).finish(error="out of memory", exit_code=3, timeout_s=FINISH_S)


def rank_of_two(rank: int, signal: str | None = None) -> Train:
    """Return a training of one of two ranks, which begins after `signal`."""

    def train(settings: TrainerSettings) -> Receipt:
        if signal is not None:
            _await_signal(settings, signal)
        return _train(settings, rank, 2).finish(timeout_s=FINISH_S)

    return train


def in_parts(*signals: str, rank: int | None = None, world_size: int | None = None) -> Train:
    """Return a training that reports two lines, then waits for a signal, and so on."""

    def train(settings: TrainerSettings) -> Receipt:
        run = _run(settings, rank, world_size)
        waits = iter(signals)
        for number in range(len(LINES)):
            if number and number % 2 == 0 and (signal := next(waits, None)):
                _await_signal(settings, signal)
            _report(run, number)
        _checkpoint(run)
        return run.finish(timeout_s=FINISH_S)

    return train


def until_stopped(settings: TrainerSettings) -> Receipt:
    """Train, and end once somebody has asked for it."""
    run = _train(settings)
    deadline = time.monotonic() + SIGNAL_S
    while not run.should_stop and time.monotonic() < deadline:
        time.sleep(0.02)
    return run.finish(timeout_s=FINISH_S)


def with_alert(settings: TrainerSettings) -> Receipt:
    """Train after the rules are in force, and send an alert."""
    _await_signal(settings, "rules")
    run = _train(settings)
    run.alert(ALERT, "at step 5", level="warning")
    return run.finish(timeout_s=FINISH_S)


def with_folder(settings: TrainerSettings) -> Receipt:
    """Train, and upload a checkpoint of several files."""
    run = _train(settings)
    folder = _folder(settings) / "checkpoint"
    folder.mkdir()
    for number in range(SHARDS):
        (folder / f"shard-{number}.bin").write_bytes(bytes([number]) * 1000)
    run.checkpoint(folder, kind="last", step=6)
    return run.finish(timeout_s=FINISH_S)


def with_uploads(settings: TrainerSettings) -> Receipt:
    """Train, and upload several checkpoints of which retention keeps one."""
    run = _train(settings)
    for number in range(UPLOADS):
        path = _folder(settings) / f"epoch-{number}.pt"
        path.write_bytes(bytes([number]) * 1000)
        run.checkpoint(path, kind="epoch", step=10 + number)
    return run.finish(timeout_s=FINISH_S)


def stalling(settings: TrainerSettings) -> Receipt:
    """Train, and pause in the middle for longer than the run has announced."""
    train = in_parts("reported", "resumed")
    signal_file(_folder(settings), "reported").touch()
    return train(replace(settings, vitals=Vitals(interval_s=0.1, stall_after_s=STALL_AFTER_S)))


def with_parts(settings: TrainerSettings) -> Receipt:
    """Train, and upload a hard link of a checkpoint in parts."""
    transfer.PART_BYTES = PART_BYTES  # type: ignore[misc]
    path = _folder(settings) / "large.pt"
    with path.open("wb") as file:
        file.truncate(2 * PART_BYTES + 1000)
    run = _train(replace(settings, checkpoints=replace(settings.checkpoints, snapshot="link")))
    run.checkpoint(path, kind="last", step=10)
    return run.finish(timeout_s=FINISH_S)


SCRIPT: Final = f"""
import sys, time
from trainwire import Run
run = Run(params={{"lr": 0.1}})
for number, line in enumerate({LINES}):
    print(line, file=sys.stderr if number == 1 else sys.stdout, flush=True)
    run.metric(step=number, loss=1 / (number + 1), f1=float(number))
    if number % 2:
        time.sleep(0.05)
run.checkpoint("/elsewhere/best.pt", kind="best", step=5)
"""


PREEMPTED_SCRIPT: Final = f"""{SCRIPT}
import os, signal
os.kill({{launcher}}, signal.SIGTERM)
time.sleep(60)
"""


def launched(settings: TrainerSettings) -> Receipt:
    """Replace this process by `trainwire run`."""
    return _under_launcher(settings, SCRIPT)


def preempted(settings: TrainerSettings) -> Receipt:
    """Train in a Slurm job that the scheduler ends: the launcher gets SIGTERM."""
    os.environ["SLURM_JOB_ID"] = "812"
    return _under_launcher(settings, PREEMPTED_SCRIPT.replace("{launcher}", str(os.getpid())))


def _under_launcher(settings: TrainerSettings, script: str) -> Receipt:
    command = ["-m", "trainwire", "run", "--job-id", str(settings.job_id), "--name", "certified", "--"]
    os.environ.pop("TRAINWIRE_CHECKPOINT_BUCKET", None)
    os.environ |= {
        "TRAINWIRE_SPOOL_DIR": str(settings.spool.folder),
        "TRAINWIRE_SETTLE_S": "4",
        "TRAINWIRE_FLUSH_INTERVAL_S": "0.01",
        "PYTHONPATH": f"{SITE}{os.pathsep}{ROOT}",
    }
    os.execv(sys.executable, [sys.executable, *command, sys.executable, "-c", script])
