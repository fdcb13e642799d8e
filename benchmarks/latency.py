"""Measures the time from `run.log()` to the committed row, on an idle system with a real worker and beat."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

from sqlalchemy import text

from benchmarks.processes import running
from trainwire import Run
from trainwire.ingest.settings.setting_groups import Timing
from trainwire.ingest.settings.trainer_settings import TrainerSettings
from trainwire.workers.resources import Resources

LINES = 200


def log_to_row_ms(resources: Resources, flush_interval_s: float, scale: float) -> tuple[float, float]:
    """Return the median and 95th percentile in milliseconds, including the SDK's flush interval."""
    lines = max(40, round(LINES * min(scale, 1)))
    redis_url = resources.settings.redis_url.get_secret_value()
    settings = replace(
        TrainerSettings.from_env(), redis_url=redis_url, timing=Timing(flush_interval_s=flush_interval_s)
    )
    found = text("SELECT 1 FROM training_logs WHERE job_id = 77 AND content = :line")
    taken = []
    with (
        running(resources, "trainwire.workers", "worker", "--concurrency", "2"),
        running(resources, "trainwire.workers", "beat", ready="beat"),
        Run(job_id=77, settings=settings) as run,
        resources.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
    ):
        for number in range(lines):
            line = f"line {number}"
            began = time.perf_counter()
            run.log(line)
            while not connection.execute(found, {"line": line}).first():
                time.sleep(0.001)  # the resolution of the figure
            taken.append((time.perf_counter() - began) * 1000)
            time.sleep(0.02)
    taken = taken[5:]  # the first ones also start the trainer's connection
    return statistics.median(taken), statistics.quantiles(taken, n=20)[-1]
