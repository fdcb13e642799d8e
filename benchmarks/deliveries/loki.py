"""Measures deliveries from Postgres to a fake Loki server (`tests.twins.loki`) in another process."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec
import requests
from sqlalchemy import text

from benchmarks.load import LINE
from benchmarks.processes import ROOT, running
from trainwire import Run
from trainwire.stores.loki.http import LokiHttp
from trainwire.workers.resources import Resources
from trainwire.workers.sinks.deliver import Delivery
from trainwire.workers.sinks.loki.backlog import LogBacklog, read_rows
from trainwire.workers.sinks.loki.entries import SECOND_NS, WINDOW_NS, Entry, LogRow, entries_of, labels_of
from trainwire.workers.sinks.loki.sink import PUSH_PATH, LokiSink

LINES = 100
"""Number of lines in the latency measurement."""
ROUNDS = 3
"""Number of measurements of each backlog, of which the result has the medians."""

_FILL_JOBS = text(
    "INSERT INTO training_jobs (id, status, last_log_seq) "
    "SELECT job, 'running', :lines FROM generate_series(1, :jobs) job"
)
_FILL_LOGS = text(
    "INSERT INTO training_logs (job_id, seq, logged_at, attempt, logged_ns, source, log_type, content) "
    "SELECT job, line, now() - make_interval(secs => 600 + (:lines - line) * :step_s), 1, 0, '0-bench', 'stdout', "
    ":content "
    "FROM generate_series(1, :jobs) job, generate_series(1, :lines) line"
)


@dataclass(frozen=True)
class CatchUp:
    """Seconds and requests to deliver a backlog, and seconds of plain pushes of the same lines."""

    seconds: float
    requests: int
    plain_seconds: float


@contextmanager
def twin() -> Iterator[str]:
    """Start the fake Loki server for the block; yield its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.twins.loki"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


def fill(resources: Resources, jobs: int, lines: int, step_s: float) -> None:
    """Insert a backlog into Postgres: `jobs` jobs with `lines` lines each, one every `step_s` seconds."""
    made = {"jobs": jobs, "lines": lines, "step_s": step_s, "content": LINE}
    with resources.engine.begin() as connection:
        connection.execute(_FILL_JOBS, made)
        connection.execute(_FILL_LOGS, made)
    with resources.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as settled:
        settled.execute(text("VACUUM ANALYZE training_logs"))  # as for rows that are not new
        settled.execute(text("CHECKPOINT"))


def catch_up(resources: Resources, jobs: int, lines: int, step_s: float, rounds: int) -> CatchUp:
    """Measure the delivery of a backlog, and plain pushes of the same lines on one connection.

    A plain push is prepared in memory, and has as many lines of a job as a delivery sends at once. Both are
    measured in `rounds` rounds, alternately; the result has the medians.
    """
    fill(resources, jobs, lines, step_s)
    per_push = min(lines, round(WINDOW_NS / SECOND_NS / step_s))
    with resources.engine.connect() as connection:
        bodies = [
            {"streams": [{"stream": labels_of(job, ("stdout", None)), "values": [*map(first_entry, rows)]}]}
            for job in range(1, jobs + 1)
            for after in range(0, lines, per_push)
            if (rows := read_rows(connection, job, after, per_push, 2**40))
        ]
    delivered, plain = [], []
    for _ in range(rounds):
        delivered.append(_delivered(resources, jobs * lines))
        plain.append(_pushed_plainly(bodies))
    return CatchUp(
        statistics.median(seconds for seconds, _ in delivered), delivered[0][1], statistics.median(plain)
    )


def _delivered(resources: Resources, lines: int) -> tuple[float, int]:
    """Deliver all rows to a new fake server; return the seconds and the number of pushes."""
    with resources.engine.begin() as connection:
        connection.execute(text("TRUNCATE delivery_cursors"))
    with twin() as url:
        began = time.perf_counter()
        backlog = LogBacklog(resources.engine, LokiSink.name)
        Delivery(resources.engine, backlog, LokiSink(LokiHttp(url)), slice_s=600).run()
        seconds = time.perf_counter() - began
        counted = requests.get(f"{url}/twin/stats", timeout=10).json()
    assert counted["stored"] == lines
    return seconds, counted["pushes"]


def _pushed_plainly(bodies: Sequence[object]) -> float:
    """Push the bodies to a new fake server; return the seconds."""
    with twin() as url:
        http = LokiHttp(url)
        began = time.perf_counter()
        for body in bodies:
            assert http.post_json(PUSH_PATH, msgspec.json.encode(body)).status == 204
        return time.perf_counter() - began


def first_entry(row: LogRow) -> Entry:
    """Return Loki's entry of a line that is short enough for a single entry."""
    return entries_of(row)[0]


def row_to_loki_ms(resources: Resources, lines: int) -> tuple[float, float]:
    """Return the median and 95th percentile, in ms, from a row's commit to the line in Loki, on an idle system.

    The commit is observed by polling Postgres.
    """
    found = text("SELECT 1 FROM training_logs WHERE job_id = 78 AND content = :line")
    redis_url = resources.settings.redis_url.get_secret_value()
    taken = []
    with (
        twin() as url,
        running(resources, "trainwire.workers", "worker", "--concurrency", "2", LOKI_URL=url),
        running(resources, "trainwire.workers", "beat", ready="beat"),
        Run(job_id=78, redis_url=redis_url) as run,
        resources.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        requests.Session() as session,
    ):
        for number in range(lines):
            line = f"line {number}"
            run.log(line)
            while not connection.execute(found, {"line": line}).first():
                time.sleep(0.001)  # the resolution of the figure
            began = time.perf_counter()
            while session.get(f"{url}/twin/stats", timeout=10).json()["stored"] <= number:
                time.sleep(0.002)  # the resolution of the figure
            taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken), statistics.quantiles(taken, n=20)[-1]
