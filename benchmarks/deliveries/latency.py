"""Measures the time from `run.log()` to the committed row, on an idle system with a real worker and beat."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from sqlalchemy import text

from benchmarks.processes import running
from trainwire import Run
from trainwire.ingest.settings.setting_groups import Timing
from trainwire.ingest.settings.trainer_settings import TrainerSettings
from trainwire.workers.resources import Resources

LINES = 200
PAUSE_S = 0.02
"""Pause between two lines, in which the worker becomes idle again."""


@contextmanager
def workers(resources: Resources) -> Iterator[None]:
    """Run an idle system until the block ends: a worker with two pool processes, and beat."""
    with (
        running(resources, "trainwire.workers", "worker", "--concurrency", "2"),
        running(resources, "trainwire.workers", "beat", ready="beat"),
    ):
        yield


def log_to_row_ms(resources: Resources, job: int, flush_interval_s: float, lines: int) -> tuple[float, float]:
    """Return the median and p95 in milliseconds of `lines` lines, including the SDK's flush interval."""
    redis_url = resources.settings.redis_url.get_secret_value()
    settings = replace(
        TrainerSettings.from_env(), redis_url=redis_url, timing=Timing(flush_interval_s=flush_interval_s)
    )
    found = text("SELECT 1 FROM training_logs WHERE job_id = :job AND content = :line")
    taken = []
    with (
        Run(job_id=job, settings=settings) as run,
        resources.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
    ):
        for number in range(lines):
            line = f"line {number}"
            began = time.perf_counter()
            run.log(line)
            while not connection.execute(found, {"job": job, "line": line}).first():
                time.sleep(0.001)  # the resolution of the figure
            taken.append((time.perf_counter() - began) * 1000)
            time.sleep(PAUSE_S)
    taken = taken[5:]  # the first ones also start the trainer's connection
    return statistics.median(taken), statistics.quantiles(taken, n=20)[-1]
