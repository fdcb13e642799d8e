"""Measures reads of a large database while lines come in: HTTP requests, the exporter, and commands.

The database has 10,000 jobs, 50 million log rows and 20 million points of two metrics. Job 1 has a tenth of the
lines and of the points.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import quantiles
from typing import Final

from sqlalchemy import text

from benchmarks.load import LINE, log_entry
from benchmarks.processes import ROOT, running, running_gateway, wait_until
from tests.processes import server_variables
from trainwire.schemas.keys import DEFAULT_SHARDS, shard_of, stream_key
from trainwire.stack.persisted_config import free_port
from trainwire.workers.resources import Resources
from trainwire.workers.rollups.follower import RollupFollower

JOBS: Final = 10_000
LINES: Final = 50_000_000
POINTS: Final = 20_000_000
LARGE_SHARE: Final = 0.1
"""Share of the rows that job 1 has."""
REPEATS: Final = 40
INCOMING_PER_S: Final = 5000
"""Lines per second that are published and stored during the measurement."""
INCOMING_JOBS: Final = 500
EVERY_S: Final = 0.1
"""Seconds between two rounds of incoming messages; a job sends one every ten rounds."""
DRAINED_WITHIN_S: Final = 30.0
ROLLUPS_WITHIN_S: Final = 3600.0

_JOB_ROWS: Final = text(
    "INSERT INTO training_jobs (id, name, status, created_at, started_at, completed_at, params, tags, "
    "final_metrics, last_log_seq, last_metric_seq) SELECT n, 'job ' || n, 'completed', began, began, "
    "began + interval '1 hour', jsonb_build_object('lr', random()), jsonb_build_object('team', 't' || n % 7), "
    "CASE WHEN n % 10 > 0 THEN jsonb_build_object('loss', random()) END, "
    "CASE n WHEN 1 THEN :large_lines ELSE :lines END, "
    "CASE n WHEN 1 THEN :large_points ELSE :points END "
    "FROM (SELECT n, now() - n * interval '1 minute' AS began FROM generate_series(1, :jobs) n) AS numbered"
)
_LOG_ROWS: Final = text(
    "INSERT INTO training_logs (job_id, seq, logged_at, attempt, logged_ns, source, log_type, content) "
    "SELECT job, n, now() - job * interval '1 minute' + n * interval '1 ms', 1, 0, '0-bench', 'stdout', "
    "n || ' ' || :line FROM generate_series(CAST(:first AS int), :last) job, generate_series(1, :lines) n"
)
_POINT_ROWS: Final = text(
    "INSERT INTO training_metrics (job_id, seq, logged_at, attempt, source, step, loss, extra_metrics) "
    "SELECT job, n, now() - job * interval '1 minute' + n * interval '1 ms', 1, '0-bench', n, random(), "
    "jsonb_build_object('grad_norm', random()) "
    "FROM generate_series(CAST(:first AS int), :last) job, generate_series(1, :points) n"
)


@dataclass(frozen=True)
class Reading:
    """Milliseconds of one kind of read, and the bytes of its largest response."""

    name: str
    median_ms: float
    p95_ms: float
    most_bytes: int


def measure(resources: Resources, scale: float) -> Iterator[Reading]:
    """Store the rows, then measure each kind of read while lines come in."""
    jobs = max(20, int(JOBS * scale))
    store(resources, jobs, int(LINES * scale), int(POINTS * scale))
    yield from reads(resources, jobs, int(LINES * scale * LARGE_SHARE))


def reads(resources: Resources, jobs: int, large_lines: int) -> Iterator[Reading]:
    """Measure each kind of read while lines come in; job 1 has `large_lines` lines."""
    port, metrics_port = free_port(), free_port()
    with (
        running_gateway(resources, port),
        running(resources, "trainwire.workers", "worker", "--concurrency", "2"),
        running(resources, "trainwire.workers", "beat", ready="beat"),
        running(resources, "trainwire.workers", "metrics", "--port", str(metrics_port), ready="metrics.serving"),
        incoming_lines(resources, jobs),
    ):
        kinds = requests(f"http://127.0.0.1:{port}", jobs, large_lines)
        kinds["exporter: /metrics"] = partial(get, f"http://127.0.0.1:{metrics_port}/metrics")
        for arguments in (["status", "1"], ["jobs"], ["doctor"]):
            kinds[f"trainwire {' '.join(arguments)}"] = partial(command, resources, arguments)
        for read in kinds.values():
            read()  # the first read opens connections
        for name, read in kinds.items():
            yield timed(name, read)


def store(resources: Resources, jobs: int, lines: int, points: int) -> None:
    """Insert the jobs and their rows, and build the rollups."""
    large_lines, large_points = int(lines * LARGE_SHARE), int(points * LARGE_SHARE)
    small = {"lines": (lines - large_lines) // (jobs - 1), "points": (points - large_points) // (jobs - 1)}
    large = {"large_lines": large_lines, "large_points": large_points}
    parts = [(1, 1, {"lines": large_lines, "points": large_points})]
    parts += [(first, min(first + 499, jobs), small) for first in range(2, jobs + 1, 500)]
    with resources.engine.begin() as connection:
        connection.execute(_JOB_ROWS, {"jobs": jobs, **small, **large})
    for first, last, numbers in parts:
        with resources.engine.begin() as connection:
            jobs_of_part = {"first": first, "last": last}
            connection.execute(_LOG_ROWS, {**jobs_of_part, "line": LINE, "lines": numbers["lines"]})
            connection.execute(_POINT_ROWS, {**jobs_of_part, "points": numbers["points"]})
    RollupFollower(resources.engine).run(ROLLUPS_WITHIN_S)
    with resources.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
        connection.execute(text("CHECKPOINT"))


def requests(url: str, jobs: int, large_lines: int) -> dict[str, Callable[[], int]]:
    """Return the HTTP requests by name; each call reads other rows and returns the size of the response."""
    numbers = iter(range(1, sys.maxsize))
    with urllib.request.urlopen(f"{url}/jobs/1/logs?limit=1&after=0") as answer:
        began_s = json.loads(answer.read())["items"][0]["ts"] / 1e9

    later_page = "sort=metrics.loss.min"
    for _ in range(49):
        with urllib.request.urlopen(f"{url}/jobs?limit=100&{later_page}") as answer:
            if (cursor := json.loads(answer.read())["next"]) is None:
                break
        later_page = f"sort=metrics.loss.min&cursor={quoted(cursor)}"

    def line() -> int:
        return next(numbers) * 7919 * 613 % large_lines

    def job() -> int:
        return 2 + next(numbers) * 7919 % (jobs - 1)

    return {
        "list: newest 100 jobs": lambda: get(f"{url}/jobs?limit=100"),
        "list: sorted by a parameter": lambda: get(f"{url}/jobs?limit=100&sort=params.lr"),
        "list: sorted by the last loss": lambda: get(f"{url}/jobs?limit=100&sort=metrics.loss"),
        "list: sorted by a value that only rows have": lambda: get(
            f"{url}/jobs?limit=100&sort=-metrics.grad_norm"
        ),
        "list: sorted by the lowest loss": lambda: get(f"{url}/jobs?limit=100&sort=metrics.loss.min"),
        "list: page 50, sorted by the lowest loss": lambda: get(f"{url}/jobs?limit=100&{later_page}"),
        "list: filter by parameter and tag": lambda: get(
            f"{url}/jobs?limit=100&filter={quoted('params.lr < 0.3 and tags.team = t3')}"
        ),
        "list: search by name": lambda: get(f"{url}/jobs?limit=100&search={job()}"),
        "job page: job": lambda: get(f"{url}/jobs/{job()}"),
        "job page: charts": lambda: get(f"{url}/jobs/{job()}/metrics?names=loss,grad_norm"),
        "job page: newest lines": lambda: get(f"{url}/jobs/{job()}/logs?limit=500"),
        "large job: charts": lambda: get(f"{url}/jobs/1/metrics?names=loss,grad_norm"),
        "large job: newest lines": lambda: get(f"{url}/jobs/1/logs?limit=500"),
        "log jump to a line": lambda: get(f"{url}/jobs/1/logs?limit=500&after={line()}"),
        "log jump to a time": lambda: get(f"{url}/jobs/1/logs?limit=500&at={began_s + line() / 1000}"),
        "search with many matches": lambda: get(f"{url}/jobs/1/logs?limit=500&search=epoch"),
        "search for one line": lambda: get(f"{url}/jobs/1/logs?limit=500&search={quoted(f'{line()} epoch')}"),
        "search without a match": lambda: get(f"{url}/jobs/1/logs?limit=500&search=CUDA+error"),
        "completeness": lambda: get(f"{url}/jobs/{job()}/completeness"),
    }


def quoted(part: str) -> str:
    """Return text as a part of a URL's query."""
    return urllib.parse.quote(part)


def get(url: str) -> int:
    """Return the size of the response to a GET request in bytes."""
    with urllib.request.urlopen(url) as answer:
        return len(answer.read())


def command(resources: Resources, arguments: list[str]) -> int:
    """Run a command of the CLI against the stores; return the size of its output in bytes.

    `doctor` fails here, for it also checks processes that are not running.
    """
    stores = {
        **server_variables(resources.settings),
        "LOKI_ENABLED": "False",
    }
    argv = [sys.executable, "-m", "trainwire", *arguments]
    done = subprocess.run(argv, cwd=ROOT, env=os.environ | stores, capture_output=True, check=False)
    assert done.stdout, done.stderr
    return len(done.stdout)


def timed(name: str, read: Callable[[], int]) -> Reading:
    """Repeat a read, and return its times."""
    taken_ms: list[float] = []
    most_bytes = 0
    for _ in range(REPEATS):
        began = time.perf_counter()
        most_bytes = max(most_bytes, read())
        taken_ms.append(1000 * (time.perf_counter() - began))
    shares = quantiles(taken_ms, n=20, method="inclusive")
    return Reading(name, shares[9], shares[18], most_bytes)


@contextmanager
def incoming_lines(resources: Resources, jobs: int) -> Iterator[None]:
    """Publish `INCOMING_PER_S` lines per second from a thread, of jobs after job `jobs`, until the block ends.

    Then wait until all of them are stored; fail if they are not within `DRAINED_WITHIN_S`.
    """
    ended = threading.Event()
    rounds = 0

    def publish() -> None:
        nonlocal rounds
        began = time.monotonic()
        while not ended.wait(max(0.0, began + rounds * EVERY_S - time.monotonic())):
            publish_round(resources, jobs, rounds)
            rounds += 1

    thread = threading.Thread(target=publish, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    rows = text("SELECT coalesce(sum(last_log_seq), 0) FROM training_jobs WHERE id > :jobs")
    with resources.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        expected = rounds * INCOMING_PER_S * EVERY_S
        wait_until(lambda: connection.execute(rows, {"jobs": jobs}).scalar_one() == expected, DRAINED_WITHIN_S)


def publish_round(resources: Resources, jobs: int, number: int) -> None:
    """Publish one message each of the tenth of the incoming jobs whose turn it is in round `number`."""
    turns = int(1 / EVERY_S)
    pipeline = resources.redis.pipeline(transaction=False)
    for job in range(jobs + 1 + number % turns, jobs + 1 + INCOMING_JOBS, turns):
        entry = log_entry(job, 1 + number // turns, [LINE] * (INCOMING_PER_S // INCOMING_JOBS))
        pipeline.xadd(stream_key("logs", shard_of(job, DEFAULT_SHARDS)), entry)
    pipeline.execute()
