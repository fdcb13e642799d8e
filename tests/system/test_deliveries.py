"""Real workers deliver to the twin of Loki through every kind of trouble."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

import pytest

from schemas.messages import Logs
from schemas.tables import delivery_cursors, training_jobs
from tests.factories import Sender, rows
from tests.processes import kill_somebody, wait_until, workers_running
from tests.twins.loki import Fault, LokiTwin
from workers.resources import Resources

JOBS = range(1, 201)
ROUNDS = 6
LINES = 5


def faults(chance: random.Random) -> list[Fault]:
    """One round of trouble."""
    trouble = [
        *(Fault(status=status) for status in (500, 503, 260, 401)),
        Fault(status=429, retry_after=1),
        Fault(kind="slow", times=20, delay_s=0.05),
        Fault(kind="cut"),
        Fault(kind="lost_answer", times=2),
    ]
    chance.shuffle(trouble)
    return trouble


def publish_round(sender: Sender, number: int) -> None:
    """Let every job say a few lines."""
    now = time.time_ns()
    for job in JOBS:
        lines = [f"job {job} round {number} line {n}" for n in range(LINES)]
        sender.send(Logs(log_type="stdout", lines=lines, ts=[now + n for n in range(LINES)]), job=job)


def all_delivered(resources: Resources) -> bool:
    """Tell whether Loki has confirmed every row of every job."""
    confirmed = rows(resources.engine, delivery_cursors, "job_id", "confirmed_seq", order=["job_id"])
    return confirmed == rows(resources.engine, training_jobs, "id", "last_log_seq", order=["id"])


@pytest.mark.timeout(240)
def test_every_line_reaches_loki_once_through_all_trouble(
    resources: Resources, sender: Sender, tmp_path: Path
) -> None:
    """200 jobs, refused connections, 5xx, 429, 260, 401, cuts, lost answers, and killed workers."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with (
        LokiTwin() as twin,
        workers_running(
            resources.settings, tmp_path, workers=2, LOKI_URL=twin.url, DELIVERY_BACKOFF_CAP_S="0.5"
        ) as workers,
    ):
        for number in range(ROUNDS):
            if number % 2 == 0:
                twin.faults.extend(faults(chance))
            publish_round(sender, number)
            if number == 2:
                twin.stop()
            if number == 3:
                twin.start()
            time.sleep(chance.uniform(0.2, 1.5))
            kill_somebody(workers, chance)
        wait_until(lambda: len(rows(resources.engine, training_jobs, "id", order=["id"])) == len(JOBS), "all jobs")
        wait_until(lambda: all_rows_are_stored(resources), "all rows in Postgres", timeout_s=60)
        wait_until(lambda: all_delivered(resources), "all rows in Loki", timeout_s=90)
        for job in JOBS:
            said = [f"job {job} round {number} line {n}" for number in range(ROUNDS) for n in range(LINES)]
            found = [line.line for line in twin.lines(job)]
            assert Counter(found) == Counter(said)
            assert found == said


def all_rows_are_stored(resources: Resources) -> bool:
    """Tell whether Postgres has all lines."""
    stored: list[int] = rows(resources.engine, training_jobs, "last_log_seq", order=["id"])
    return sum(stored) == len(JOBS) * ROUNDS * LINES


def test_a_line_reaches_loki_by_itself(resources: Resources, sender: Sender, tmp_path: Path) -> None:
    """With workers and beat running, what a trainer says is in Loki a moment later."""
    with LokiTwin() as twin, workers_running(resources.settings, tmp_path, LOKI_URL=twin.url):
        publish_round(sender, 0)
        wait_until(lambda: len(twin.lines()) == len(JOBS) * LINES, "all lines in Loki", timeout_s=20)
        labels = twin.lines(7)[0].labels
        assert labels == {"job": "training", "job_id": "7", "log_type": "stdout", "source": "backend"}


def test_without_loki_rows_end_in_postgres(resources: Resources, sender: Sender, tmp_path: Path) -> None:
    """With LOKI_ENABLED=false nothing is delivered and nothing is said to be behind."""
    with LokiTwin() as twin:
        running = workers_running(resources.settings, tmp_path, LOKI_URL=twin.url, LOKI_ENABLED="false")
        with running:
            publish_round(sender, 0)
            stored = len(JOBS) * LINES
            wait_until(
                lambda: sum(rows(resources.engine, training_jobs, "last_log_seq", order=["id"])) == stored, "rows"
            )
        assert twin.lines() == []
        assert rows(resources.engine, delivery_cursors, "job_id", order=["job_id"]) == []
