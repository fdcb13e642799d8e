"""The scenarios: each is a training, the rows that it must leave, and the outage that happens meanwhile."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.certify.failpoints import ROOT
from trainwire import Run
from trainwire.ingest.receipt import Receipt
from trainwire.ingest.settings.trainer_settings import TrainerSettings

if TYPE_CHECKING:
    from tests.certify.world import World

LINES: Final = [f"line {number}" for number in range(6)]
SITE: Final = Path(__file__).parent / "site"
SHARDS: Final = 3
FINISH_S: Final = 30.0
"""Seconds for the end of a run, which ends as soon as all is stored; more than a busy machine needs."""
TROUBLE_AFTER_S: Final = 0.15

Train = Callable[[TrainerSettings], Receipt]


@dataclass(frozen=True)
class Expected:
    """The rows of a job, and the columns of the job itself, when all is stored."""

    lines: list[tuple[str, str]]
    steps: list[int]
    checkpoints: list[str]
    job: Mapping[str, Any]
    is_deleted: bool = False
    shards: int = 0
    """Number of files of the uploaded checkpoint folder."""


@dataclass(frozen=True)
class Scenario:
    """A training, the rows that it must leave, and the servers and events of its run."""

    name: str
    trains: tuple[Train, ...]
    """The trainers, of which the first one has the failpoints."""
    expected: Expected
    meanwhile: Callable[[World], None] = lambda _: None
    """Called `TROUBLE_AFTER_S` seconds after the trainers were started."""
    afterwards: Callable[[World], None] | None = None
    """Called when all is stored; the rows are then those of `at_end`."""
    at_end: Expected | None = None
    has_bucket: bool = False
    has_launcher: bool = False
    """Whether the trainer is `trainwire run` with a script."""
    exit_code: int = 0
    """The exit code of the trainers."""
    has_gateway: bool = False
    """Whether the trainers send over HTTP, and a browser watches."""


def _train(settings: TrainerSettings, rank: int | None = None, world_size: int | None = None) -> Run:
    run = Run(
        settings.job_id, "certified", settings=settings, rank=rank, world_size=world_size, params={"lr": 0.1}
    )
    for number, line in enumerate(LINES):
        run.log(line, log_type="stderr" if number == 1 else "stdout")
        run.metric(step=number, loss=1 / (number + 1), f1=float(number))
        if number % 2:
            time.sleep(0.05)
    run.checkpoint("/elsewhere/best.pt", kind="best", step=5, metrics={"loss": 0.5})
    return run


def _finished(settings: TrainerSettings) -> Receipt:
    return _train(settings).finish(timeout_s=FINISH_S)


def _failed(settings: TrainerSettings) -> Receipt:
    run = _train(settings)
    return run.finish(error="out of memory", exit_code=3, timeout_s=FINISH_S)


def _rank(rank: int) -> Train:
    def train(settings: TrainerSettings) -> Receipt:
        return _train(settings, rank, 2).finish(timeout_s=FINISH_S)

    return train


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


def _launched(settings: TrainerSettings) -> Receipt:
    return _under_launcher(settings, SCRIPT)


def _preempted(settings: TrainerSettings) -> Receipt:
    """Train in a Slurm job that the scheduler ends: the launcher gets SIGTERM."""
    os.environ["SLURM_JOB_ID"] = "812"
    return _under_launcher(settings, PREEMPTED_SCRIPT.replace("{launcher}", str(os.getpid())))


def _under_launcher(settings: TrainerSettings, script: str) -> Receipt:
    """Replace this process by `trainwire run`."""
    command = ["-m", "trainwire", "run", "--job-id", str(settings.job_id), "--name", "certified", "--"]
    os.environ.pop("TRAINWIRE_CHECKPOINT_BUCKET", None)
    os.environ |= {
        "TRAINWIRE_SPOOL_DIR": str(settings.spool.folder),
        "TRAINWIRE_SETTLE_S": "4",
        "TRAINWIRE_FLUSH_INTERVAL_S": "0.01",
        "PYTHONPATH": f"{SITE}{os.pathsep}{ROOT}",
    }
    os.execv(sys.executable, [sys.executable, *command, sys.executable, "-c", script])


def _with_folder(settings: TrainerSettings) -> Receipt:
    run = _train(settings)
    assert settings.spool.folder is not None
    folder = Path(settings.spool.folder).parent / "checkpoint"
    folder.mkdir()
    for number in range(SHARDS):
        (folder / f"shard-{number}.bin").write_bytes(bytes([number]) * 1000)
    run.checkpoint(folder, kind="last", step=6)
    return run.finish(timeout_s=FINISH_S)


COMPLETED: Final = {"status": "completed", "attempt": 1, "params": {"lr": 0.1}}
ALL_KINDS: Final = Expected(
    [("stderr" if number == 1 else "stdout", line) for number, line in enumerate(LINES)],
    list(range(len(LINES))),
    ["/elsewhere/best.pt"],
    COMPLETED | {"final_metrics": {"loss": 1 / 6, "f1": 5.0}},
)
LAUNCHED: Final = replace(ALL_KINDS, job={"status": "completed", "exit_code": 0, "params": {"lr": 0.1}})
PREEMPTED: Final = replace(
    ALL_KINDS,
    job={"status": "preempted", "exit_code": 143, "error_message": "SIGTERM in Slurm job 812"},
)
FAILED: Final = replace(ALL_KINDS, job={"status": "failed", "exit_code": 3, "error_message": "out of memory"})
TWO_RANKS: Final = Expected(
    ALL_KINDS.lines * 2, ALL_KINDS.steps * 2, ALL_KINDS.checkpoints * 2, {"status": "completed"}
)
DELETED: Final = Expected([], [], [], {}, is_deleted=True)

SCENARIOS: Final = {
    scenario.name: scenario
    for scenario in (
        Scenario("finished", (_finished,), ALL_KINDS),
        Scenario("launched", (_launched,), LAUNCHED, has_launcher=True),
        Scenario("preempted", (_preempted,), PREEMPTED, has_launcher=True, exit_code=143),
        Scenario("failed", (_failed,), FAILED),
        Scenario("two-ranks", (_rank(0), _rank(1)), TWO_RANKS),
        Scenario("checkpoint-folder", (_with_folder,), replace(ALL_KINDS, shards=SHARDS), has_bucket=True),
        Scenario("over-http", (_finished,), ALL_KINDS, has_gateway=True),
        Scenario("loki-away", (_finished,), ALL_KINDS, lambda world: world.take_loki_away()),
        Scenario("redis-away", (_finished,), ALL_KINDS, lambda world: world.take_redis_away()),
        Scenario("postgres-away", (_finished,), ALL_KINDS, lambda world: world.take_postgres_away()),
        Scenario("deleted", (_finished,), ALL_KINDS, afterwards=lambda world: world.delete(), at_end=DELETED),
    )
}
