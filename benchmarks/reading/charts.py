"""Measures rollups and charts of very large jobs: the time to build blocks, and the latency of a real gateway."""

from __future__ import annotations

import json
import random
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

from sqlalchemy import text

from benchmarks.deliveries import mlflow
from benchmarks.processes import running_gateway
from trainwire.stack.persisted_config import free_port
from trainwire.workers.resources import Resources
from trainwire.workers.rollups.follower import RollupFollower

REPEATS: Final = 3
ZOOMS: Final = (0.5, 0.2, 0.05, 0.01, 0.001)
"""Widths of the requested ranges of steps, as shares of all steps."""
COLUMNS: Final = "job_id, seq, attempt, source, logged_at, epoch, step, extra_metrics"


@dataclass(frozen=True)
class ChartSize:
    """Size of a job: number of metric names, points per name, and names per row."""

    names: int
    points: int
    per_row: int

    @property
    def rows(self) -> int:
        """The number of rows of the job."""
        return self.points * self.names // self.per_row


@dataclass
class ChartTimes:
    """Seconds to build the blocks of a million values, bytes per point, and milliseconds per request."""

    build_s: float
    block_bytes: float
    row_bytes: float
    requests: dict[str, float] = field(default_factory=dict)


SIZES: Final = (ChartSize(100_000, 100, 1000), ChartSize(50, 1_000_000, 50), ChartSize(1000, 10_000, 1000))


BESIDE_MLFLOW: Final = ChartSize(50, 20_000, 50)
"""Size of the job that is stored in MLflow's server as well."""


def measure(resources: Resources, size: ChartSize) -> ChartTimes:
    """Store a job's rows with COPY, build its blocks, and measure requests for its charts."""
    store_rows(resources, size)
    began = time.perf_counter()
    while not RollupFollower(resources.engine).follow(1):
        pass
    millions = size.names * size.points / 1e6
    build_s = (time.perf_counter() - began) / millions
    with resources.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE metric_blocks, metric_series, training_metrics"))
        sizes = "SELECT pg_total_relation_size(CAST(:table AS regclass))"
        tables = ("metric_blocks", "metric_series", "training_metrics")
        blocks, series, rows = (connection.execute(text(sizes), {"table": name}).scalar_one() for name in tables)
    times = ChartTimes(build_s, (blocks + series) / millions / 1e6, rows / millions / 1e6)
    port = free_port()
    with running_gateway(resources, port):
        for what, taken in requests(f"http://127.0.0.1:{port}", size):
            times.requests[what] = 1000 * taken
    return times


def beside_mlflow(resources: Resources, size: ChartSize) -> Iterator[tuple[str, float, float]]:
    """Yield (request, median milliseconds of trainwire, median milliseconds of MLflow) for the same data."""
    store_rows(resources, size)
    while not RollupFollower(resources.engine).follow(1):
        pass
    port = free_port()
    with running_gateway(resources, port), mlflow.server_with_points(resources) as (target, run_id):
        for count in (1, 12, min(50, size.names)):
            names = [name_of(number) for number in random.sample(range(size.names), count)]
            chosen = "names=" + urllib.parse.quote(",".join(names))
            for share in (None, 0.2, 0.01):
                steps = None if share is None else (size.points // 3, size.points // 3 + int(share * size.points))
                part = "" if steps is None else f"&from={steps[0]}&to={steps[1]}"
                url = f"http://127.0.0.1:{port}/jobs/1/metrics?{chosen}{part}"
                ours = median(get(url) for _ in range(REPEATS))
                theirs = median(mlflow.charts_s(target, run_id, names, steps) for _ in range(REPEATS))
                shown = "whole" if share is None else f"zoom to {share:.0%}"
                yield f"{count} charts, {shown}", 1000 * ours, 1000 * theirs


def store_rows(resources: Resources, size: ChartSize) -> None:
    """Store the rows of job 1; successive rows have different names, values and times."""
    values = [f"{random.gauss(0, 1):.6f}" for _ in range(100_003)]
    turns = size.names // size.per_row
    keys = [[f'"{name_of(turn * size.per_row + n)}": ' for n in range(size.per_row)] for turn in range(turns)]
    with resources.engine.begin() as connection:
        driver: Any = connection.connection.driver_connection
        with driver.cursor() as cursor, cursor.copy(f"COPY training_metrics ({COLUMNS}) FROM STDIN") as copy:
            for n in range(1, size.rows + 1):
                first = n * 7919 % (len(values) - size.per_row)
                extra = ", ".join(map(str.__add__, keys[n % turns], values[first : first + size.per_row]))
                time_of_day = f"{n // 360_000 % 24:02}:{n // 6000 % 60:02}:{n / 100 % 60:05.2f}"
                at = f"2026-11-{1 + n // 8_640_000:02} {time_of_day}+00"
                copy.write(f"1\t{n}\t1\ts\t{at}\t{n // 1000}\t{n // turns}\t{{{extra}}}\n")
        job = "INSERT INTO training_jobs (id, status, last_metric_seq) VALUES (1, 'completed', :rows)"
        connection.execute(text(job), {"rows": size.rows})


def name_of(number: int) -> str:
    """Return the name of the metric with this number."""
    return f"layer{number // 100}/m{number:06}"


def requests(url: str, size: ChartSize) -> Iterator[tuple[str, float]]:
    """Yield (request, median seconds). The very first request is yielded separately."""
    yield "names, first", get(f"{url}/jobs/1/metrics/names?limit=1000")
    yield "names", median(get(f"{url}/jobs/1/metrics/names?limit=1000") for _ in range(5))
    for charts in (1, 12, 50):
        names = random.sample(range(size.names), charts)
        chosen = "names=" + urllib.parse.quote(",".join(name_of(number) for number in names))
        yield f"{charts} charts, whole", median(get(f"{url}/jobs/1/metrics?{chosen}") for _ in range(5))
        yield (
            f"{charts} charts, slowest zoom",
            max(median(get(f"{url}/jobs/1/metrics?{chosen}&{part}") for _ in range(3)) for part in parts(size)),
        )


def parts(size: ChartSize) -> Iterator[str]:
    """Yield a random range of steps for each width in `ZOOMS`, as URL parameters."""
    for share in ZOOMS:
        first = int(random.random() * (1 - share) * size.points)
        yield f"from={first}&to={int(first + share * size.points)}"


def get(url: str) -> float:
    """Return the seconds until the whole response of a GET request is received."""
    began = time.perf_counter()
    with urllib.request.urlopen(url) as answer:
        data = answer.read()
    taken = time.perf_counter() - began
    assert json.loads(data)
    return taken
