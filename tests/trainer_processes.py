"""Trainers of system tests, in processes of their own, that log lines until a newline on stdin ends them."""

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
from tests.processes import END_S, ROOT, wait_until
from trainwire.schemas.tables import training_jobs, training_logs, training_metrics

TRAINER = """
import json, select, sys, time
from trainwire import Run
run = Run(job_id=int(sys.argv[1]), name="steady")
lines = 0
def log():
    global lines
    run.log(f"line {lines}")
    if lines % 10 == 0:
        run.metric(step=lines, loss=1 / (lines + 1))
    lines += 1
log()
sys.stdin.readline()
while not select.select([sys.stdin], [], [], 0.004)[0]:
    log()
receipt = run.finish(timeout_s=180)
print(json.dumps({"lines": lines, "points": (lines + 9) // 10, "complete": receipt.complete}))
"""
"""Logs a line, then more from the first line on its stdin until the second."""


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

    def advance(self) -> None:
        """Let it begin to log lines, or end."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def counts(self) -> dict[str, Any]:
        """Wait for its end, and return its own counts and whether all of it is complete."""
        output, _ = self.process.communicate(timeout=240)
        return dict(json.loads(output))

    def kill(self) -> None:
        """SIGKILL it."""
        self.process.kill()
        self.process.communicate(timeout=END_S)


@contextmanager
def trainers_running(engine: Engine, jobs: Sequence[int], env: Mapping[str, str]) -> Iterator[dict[int, Trainer]]:
    """Run a trainer for each job; yield when the first line of each is stored and each waits for `advance`."""
    # A taken order that died with its worker is given again in seconds.
    trainers = {job: Trainer(job, {"TRAINWIRE_SETTLE_S": "60", **env}) for job in jobs}
    try:
        wait_until(lambda: len(rows(engine, training_logs, "seq")) == len(jobs), "the first lines", 180)
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
    """Wait until so many more lines of each of these jobs are stored."""
    before = lines_by_job(engine)

    def have_come() -> bool:
        now = lines_by_job(engine)
        return all(now[job] >= before[job] + lines for job in jobs)

    wait_until(have_come, f"more lines of {jobs}", 90)


def ends_of(trainers: Mapping[int, Trainer]) -> dict[int, dict[str, Any]]:
    """Let trainers end; check that everything is committed, and return their own counts by job."""
    for trainer in trainers.values():
        trainer.advance()
    counts = {job: trainer.counts() for job, trainer in trainers.items()}
    assert {job: own["complete"] for job, own in counts.items()} == dict.fromkeys(trainers, True)
    return counts


def check_each_once(engine: Engine, job: int, counts: Mapping[str, Any]) -> None:
    """Each line and each point is stored once, in any order, and the job has completed."""
    assert sorted(_stored(engine, training_logs, "content", job)) == sorted(
        f"line {n}" for n in range(counts["lines"])
    )
    assert sorted(_stored(engine, training_metrics, "step", job)) == [10 * n for n in range(counts["points"])]
    assert one(engine, training_jobs, id=job)["status"] == "completed"


def _stored(engine: Engine, table: Table, column: str, job: int) -> list[Any]:
    return [value for of, value in rows(engine, table, "job_id", column) if of == job]


def check_postgres(engine: Engine, job: int, counts: Mapping[str, Any]) -> None:
    """Each line and each point is stored once, in order, and the job has completed."""
    stored = {
        table: [row[1:] for row in rows(engine, table, "job_id", "seq", column) if row[0] == job]
        for table, column in ((training_logs, "content"), (training_metrics, "step"))
    }
    assert stored[training_logs] == [(n + 1, f"line {n}") for n in range(counts["lines"])]
    assert stored[training_metrics] == [(n + 1, 10 * n) for n in range(counts["points"])]
    assert one(engine, training_jobs, id=job)["status"] == "completed"


def check_command(job: int, env: Mapping[str, str]) -> None:
    """Check that `trainwire status` shows the job as completed and its sum as complete."""
    shown = subprocess.run(
        [sys.executable, "-m", "trainwire", "status", str(job)],
        cwd=ROOT,
        env=os.environ | dict(env),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert "completed, attempt 1" in shown
    assert "\ncomplete: " in shown
