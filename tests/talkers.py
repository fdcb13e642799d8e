"""Trainers of system tests, in processes of their own, that talk until they are told to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, Table, func, select

from tests.factories import one, rows
from tests.processes import ROOT, wait_until
from trainwire.schemas.tables import training_jobs, training_logs, training_metrics

TRAINER = """
import json, select, sys, time
from trainwire import Run
run = Run(job_id=int(sys.argv[1]), name="talker")
said = 0
def say():
    global said
    run.log(f"line {said}")
    if said % 10 == 0:
        run.metric(step=said, loss=1 / (said + 1))
    said += 1
say()
sys.stdin.readline()
while not select.select([sys.stdin], [], [], 0.004)[0]:
    say()
receipt = run.finish(timeout_s=90)
print(json.dumps({"lines": said, "points": (said + 9) // 10, "complete": receipt.complete}))
"""
"""Says a line, and more from the first word on its stdin until the second."""


class Trainer:
    """A trainer in a process of its own."""

    def __init__(self, job_id: int, env: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", TRAINER, str(job_id)],
            cwd=ROOT,
            env=os.environ | dict(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self) -> None:
        """Let it begin, or end."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def said(self) -> dict[str, Any]:
        """Wait for its end; return what it says of itself."""
        output, _ = self.process.communicate(timeout=120)
        return dict(json.loads(output))

    def kill(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate(timeout=10)


@contextmanager
def trainers_running(engine: Engine, jobs: Sequence[int], env: Mapping[str, str]) -> Iterator[dict[int, Trainer]]:
    """Run a trainer for each job; each has said its first line, and waits."""
    # A taken order that died with its worker is given again in seconds.
    trainers = {job: Trainer(job, {"TRAINWIRE_SETTLE_S": "60", **env}) for job in jobs}
    try:
        wait_until(lambda: len(rows(engine, training_logs, "seq")) == len(jobs), "the first lines", 90)
        yield trainers
    finally:
        for trainer in trainers.values():
            trainer.kill()


def lines_by_job(engine: Engine) -> dict[int, int]:
    """Return how many lines of each job are stored."""
    count = select(training_logs.c.job_id, func.count().label("lines")).group_by(training_logs.c.job_id)
    with engine.connect() as connection:
        return Counter({row.job_id: row.lines for row in connection.execute(count)})


def let_more_arrive(engine: Engine, *jobs: int, lines: int = 200) -> None:
    """Wait until so many more lines of these jobs are stored."""
    before = lines_by_job(engine)

    def have_come() -> bool:
        now = lines_by_job(engine)
        return all(now[job] >= before[job] + lines for job in jobs)

    wait_until(have_come, f"more lines of {jobs}", 90)


def ends_of(trainers: Mapping[int, Trainer]) -> dict[int, dict[str, Any]]:
    """Let trainers end; return what each says of itself: all of it is committed."""
    for trainer in trainers.values():
        trainer.tell()
    said = {job: trainer.said() for job, trainer in trainers.items()}
    assert {job: told["complete"] for job, told in said.items()} == dict.fromkeys(trainers, True)
    return said


def check_each_once(engine: Engine, job: int, said: Mapping[str, Any]) -> None:
    """Each line and each point is there once, in whatever order, and the job has completed."""
    assert sorted(_stored(engine, training_logs, "content", job)) == sorted(
        f"line {n}" for n in range(said["lines"])
    )
    assert sorted(_stored(engine, training_metrics, "step", job)) == [10 * n for n in range(said["points"])]
    assert one(engine, training_jobs, id=job)["status"] == "completed"


def _stored(engine: Engine, table: Table, column: str, job: int) -> list[Any]:
    return [value for of, value in rows(engine, table, "job_id", column) if of == job]


def check_postgres(engine: Engine, job: int, said: Mapping[str, Any]) -> None:
    """Each line and each point is there once, in order, and the job has completed."""
    stored = {
        table: [row[1:] for row in rows(engine, table, "job_id", "seq", column) if row[0] == job]
        for table, column in ((training_logs, "content"), (training_metrics, "step"))
    }
    assert stored[training_logs] == [(n + 1, f"line {n}") for n in range(said["lines"])]
    assert stored[training_metrics] == [(n + 1, 10 * n) for n in range(said["points"])]
    assert one(engine, training_jobs, id=job)["status"] == "completed"


def check_command(job: int, env: Mapping[str, str]) -> None:
    """`trainwire status` says that the job has completed and that all of it is there."""
    shown = subprocess.run(
        [sys.executable, "-m", "trainwire", "status", str(job)],
        cwd=ROOT,
        env=os.environ | dict(env),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert "completed, attempt 1" in shown
    assert "\ncomplete: " in shown
