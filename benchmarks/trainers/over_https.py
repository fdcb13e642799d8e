"""Compares sending over HTTPS to a gateway with sending to Redis.

The gateway serves plain HTTP here: in production a proxy in front of it terminates TLS.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.processes import running_gateway, wait_until
from benchmarks.stores import empty
from benchmarks.trainers.sdk_cost import STEP_S, products_in, report_step, timed_block
from trainwire import Run, TrainerSettings
from trainwire.ingest.settings.setting_groups import SpoolSettings
from trainwire.stack.persisted_config import free_port
from trainwire.workers.resources import Resources

LINES: Final = 400_000
BURST: Final = 20_000
"""Lines logged per call of `log_lines`. The SDK's buffer must not become full."""
ROUNDS: Final = 5
BLOCKS: Final = 30
_LINE: Final = "epoch 3 step {} loss 0.1234 accuracy 0.9876 learning rate 0.001 grad norm 2.5"


@dataclass(frozen=True)
class Comparison:
    """Lines per second from `log()` to Redis, directly and over HTTPS, and the slowdown of a training by HTTPS."""

    redis_lines_per_s: float
    https_lines_per_s: float
    slowdown: float
    """Time of a training step with reports over HTTPS, divided by the time with reports to Redis."""


def compare(resources: Resources, scale: float) -> Comparison:
    """Measure both transports alternately. No worker runs, because it would use the same CPU cores."""
    redis_url = resources.settings.redis_url.get_secret_value()
    rates: dict[str, list[float]] = {"redis": [], "https": []}
    port = free_port()
    with TemporaryDirectory() as spool, running_gateway(resources, port):
        # Without provenance: it is collected in the first seconds, and has nothing to do with the way.
        quiet = replace(TrainerSettings.from_env(), quiet=True, provenance=frozenset())
        settings = replace(quiet, spool=SpoolSettings(Path(spool)))
        by_way = {"redis": settings.at(redis_url), "https": settings.at(None, f"http://127.0.0.1:{port}")}
        for _ in range(max(2, round(ROUNDS * min(scale, 1)))):
            for name, measured in rates.items():
                empty(resources)
                with Run(92, "bench", settings=by_way[name]) as run:
                    measured.append(_lines_per_s(run, int(LINES * min(scale, 1))))
                    run.finish(timeout_s=0.1)
        slowdown = _slowdown(by_way, max(4, int(BLOCKS * min(scale, 1))))
    return Comparison(statistics.median(rates["redis"]), statistics.median(rates["https"]), slowdown)


def _lines_per_s(run: Run, lines: int) -> float:
    outbox = run._session.outbox  # noqa: SLF001 - Redis has everything: no part of the public API
    run.log("warm")
    wait_until(lambda: outbox.is_all_sent, 60)
    began = time.perf_counter()
    for first in range(0, lines, BURST):
        run.log_lines([_LINE.format(number) for number in range(first, first + BURST)], "stdout", time.time_ns())
    wait_until(lambda: outbox.is_all_sent, 120)
    return lines / (time.perf_counter() - began)


def _slowdown(by_way: Mapping[str, TrainerSettings], blocks: int) -> float:
    """Return the time of a training step with reports over HTTPS, divided by the time with reports to Redis."""
    matrix = np.random.default_rng(0).random((192, 192))
    taken: dict[int, list[float]] = {93: [], 94: []}
    with (
        threadpool_limits(1),
        Run(93, "bench", settings=by_way["redis"]) as first,
        Run(94, "bench", settings=by_way["https"]) as second,
    ):
        products = products_in(STEP_S, matrix)
        for _ in range(blocks):
            for run in (first, second):
                taken[run.job_id].append(timed_block(matrix, products, partial(report_step, run)))
        first.finish(timeout_s=0.1)
        second.finish(timeout_s=0.1)
    return statistics.median(taken[94]) / statistics.median(taken[93])
