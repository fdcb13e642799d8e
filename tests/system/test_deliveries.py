"""Real workers deliver to the twin of Loki through faults of every kind."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from functools import partial
from pathlib import Path

import psutil
from sqlalchemy import func, update

from tests.factories import Sender, rows
from tests.processes import Process, kill_one, wait_until, workers_running
from tests.twins.loki import Fault, Limits, LokiTwin
from trainwire.schemas.tables import dead_letters, delivery_cursors, sink_states, training_jobs
from trainwire.schemas.wire.messages import Logs
from trainwire.workers.resources import Resources

JOBS = range(1, 201)
ROUNDS = 6
LINES = 5
TOO_LONG = 3000
MINUTE_NS = 60 * 10**9


def faults(chance: random.Random) -> list[Fault]:
    """Return the faults of one round."""
    trouble = [
        *(Fault(status=status) for status in (500, 503, 260, 401)),
        Fault(status=429, retry_after=1),
        Fault(kind="slow", times=20, delay_s=0.05),
        Fault(kind="cut"),
        Fault(kind="lost_answer", times=2),
    ]
    chance.shuffle(trouble)
    return trouble


def lines_of(job: int, number: int) -> list[str]:
    """Return the lines of a job in a round; one job in twenty has a line that this Loki always refuses."""
    lines = [f"job {job} round {number} line {n}" for n in range(LINES)]
    if job % 20 == 0:
        lines[2] += "x" * TOO_LONG
    return lines


def publish_round(sender: Sender, number: int) -> None:
    """Send a few lines for every job."""
    now = time.time_ns()
    for job in JOBS:
        sender.send(
            Logs(log_type="stdout", lines=lines_of(job, number), ts=[now + n for n in range(LINES)]), job=job
        )


def all_delivered(resources: Resources) -> bool:
    """Return whether Loki has confirmed every row of every job."""
    confirmed = rows(resources.engine, delivery_cursors, "job_id", "confirmed_seq", order=["job_id"])
    return confirmed == rows(resources.engine, training_jobs, "id", "last_log_seq", order=["id"])


def test_every_line_reaches_loki_once_through_all_trouble(
    resources: Resources, sender: Sender, tmp_path: Path
) -> None:
    """200 jobs, refused connections, 5xx, 429, 260, 401, partial 400, cuts, lost answers, and killed workers."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with (
        LokiTwin(limits=Limits(max_line_bytes=TOO_LONG)) as twin,
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
            kill_one(workers, chance)
        wait_until(lambda: len(rows(resources.engine, training_jobs, "id", order=["id"])) == len(JOBS), "all jobs")
        everything = len(JOBS) * ROUNDS * LINES
        wait_until(partial(are_stored, resources, everything), "all rows in Postgres", 180)
        wait_until(lambda: all_delivered(resources), "all rows in Loki", 180)
        for job in JOBS:
            sent = [line for number in range(ROUNDS) for line in lines_of(job, number) if len(line) < TOO_LONG]
            found = [line.line for line in twin.lines(job)]
            assert Counter(found) == Counter(sent)
            assert found == sent
        refused = Counter(rows(resources.engine, dead_letters, "job_id", order=["job_id"]))
        assert refused == Counter({job: ROUNDS for job in JOBS if job % 20 == 0})


def test_loki_down_for_a_day(resources: Resources, sender: Sender, tmp_path: Path) -> None:
    """Forty jobs log a line a minute for 24 hours without Loki: few probes, flat memory, then all in order."""
    jobs, rounds, minutes = range(1, 41), 12, 120
    began = time.time_ns() - rounds * minutes * MINUTE_NS
    twin = LokiTwin()
    with twin:
        pass  # it keeps its port, and is down
    with workers_running(resources.settings, tmp_path, LOKI_URL=twin.url) as (worker,):
        sizes = []
        for number in range(rounds):
            first = number * minutes
            times = [began + minute * MINUTE_NS for minute in range(first, first + minutes)]
            for job in jobs:
                lines = [f"job {job} minute {minute}" for minute in range(first, first + minutes)]
                sender.send(Logs(log_type="stdout", lines=lines, ts=times), job=job)
            wait_until(partial(are_stored, resources, len(jobs) * (first + minutes)), "the rows of two hours")
            wait_until(partial(has_probed, resources, number + 1), "a probe")
            sizes.append(resident_bytes(worker))
            let_the_probe_be_due(resources)
        assert not has_probed(resources, 3 * rounds)
        with twin:
            let_the_probe_be_due(resources)
            wait_until(lambda: all_delivered(resources), "the day in Loki", 180)
            sizes.append(resident_bytes(worker))
            for job in jobs:
                found = [(line.line, line.ts_ns, "late" in line.labels) for line in twin.lines(job)]
                assert found == [
                    (f"job {job} minute {minute}", began + minute * MINUTE_NS, False)
                    for minute in range(rounds * minutes)
                ]
    assert max(sizes) < sizes[0] + 64 * 1024 * 1024


def resident_bytes(worker: Process) -> int:
    """Return the memory of a worker with its pool."""
    main = psutil.Process(worker.process.pid)
    return sum(int(process.memory_info().rss) for process in [main, *main.children(recursive=True)])


def are_stored(resources: Resources, lines: int) -> bool:
    """Return whether Postgres has that many log rows."""
    stored: list[int] = rows(resources.engine, training_jobs, "last_log_seq", order=["id"])
    return sum(stored) == lines


def has_probed(resources: Resources, times: int) -> bool:
    """Return whether so many probes have found Loki unavailable."""
    probes: list[int] = rows(resources.engine, sink_states, "attempts", order=["sink"])
    return sum(probes) >= times


def let_the_probe_be_due(resources: Resources) -> None:
    """Make the next probe due."""
    with resources.engine.begin() as connection:
        connection.execute(update(sink_states).values(next_probe_at=func.now()))


def test_a_line_reaches_loki_by_itself(resources: Resources, sender: Sender, tmp_path: Path) -> None:
    """With workers and beat running, a trainer's lines are in Loki a moment later."""
    with LokiTwin() as twin, workers_running(resources.settings, tmp_path, LOKI_URL=twin.url):
        publish_round(sender, 0)
        wait_until(lambda: len(twin.lines()) == len(JOBS) * LINES, "all lines in Loki")
        labels = twin.lines(7)[0].labels
        assert labels == {"job": "training", "job_id": "7", "log_type": "stdout", "source": "backend"}


def test_a_line_reaches_its_file_by_itself(resources: Resources, sender: Sender, tmp_path: Path) -> None:
    """With JSONL_DIR, workers and beat write every line once, besides Loki and through killed workers."""
    folder = tmp_path / "logs"
    chance = random.Random(7)
    with LokiTwin() as twin:
        running = workers_running(
            resources.settings,
            tmp_path,
            workers=2,
            LOKI_URL=twin.url,
            JSONL_DIR=str(folder),
            DELIVERY_BACKOFF_CAP_S="0.5",
        )
        with running as workers:
            for number in range(ROUNDS):
                publish_round(sender, number)
                kill_one(workers, chance)
            lines = len(JOBS) * ROUNDS * LINES
            wait_until(lambda: len(twin.lines()) == lines, "all lines in Loki", 180)
            wait_until(lambda: len(in_files(folder)) == lines, "all lines in the files", 180)
    for job in JOBS:
        assert in_files(folder, job) == [line for number in range(ROUNDS) for line in lines_of(job, number)]


def in_files(folder: Path, job: int | str = "*") -> list[str]:
    """Return the lines in the files of a job, or of all jobs."""
    paths = sorted(folder.glob(f"{job}-*/*.jsonl"))
    return [json.loads(line)["content"] for path in paths for line in path.read_text().splitlines()]


def test_without_loki_rows_end_in_postgres(resources: Resources, sender: Sender, tmp_path: Path) -> None:
    """With LOKI_ENABLED=false nothing is delivered, and no delivery is reported as behind."""
    with LokiTwin() as twin:
        running = workers_running(resources.settings, tmp_path, LOKI_URL=twin.url, LOKI_ENABLED="false")
        with running:
            publish_round(sender, 0)
            stored = len(JOBS) * LINES
            wait_until(partial(are_stored, resources, stored), "rows")
        assert twin.lines() == []
        assert rows(resources.engine, delivery_cursors, "job_id", order=["job_id"]) == []
