"""Measures the cost of the SDK in a training: the time of a call, and the slowdown of a loop with reports."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.processes import running
from trainwire import Run
from trainwire.workers.resources import Resources

CALLS = 20_000
STEP_S = 0.010
BLOCK_STEPS = 25
BLOCKS = 40


@dataclass(frozen=True)
class CallTimes:
    """Median and 99th percentile of the time of a call, in microseconds."""

    median: float
    p99: float


def call_times(resources: Resources, scale: float) -> dict[str, CallTimes]:
    """Measure consecutive calls of `log` and `metric`, while a worker stores the messages."""
    url = resources.settings.redis_url.get_secret_value()
    with (
        running(resources, "trainwire.workers", "worker", "--concurrency", "1"),
        Run(job_id=90, redis_url=url) as run,
    ):
        calls = {
            "log()": lambda number: run.log(f"epoch 3 step {number} loss 0.1234 accuracy 0.9876"),
            "metric(), 4 values": lambda number: run.metric(step=number, loss=0.1, accuracy=0.9, lr=1e-3, f1=0.8),
        }
        return {name: _measured(call, int(CALLS * scale)) for name, call in calls.items()}


def loop_speed(resources: Resources, scale: float) -> float:
    """Return the speed of a loop that reports every step (10 ms), divided by its speed without reports.

    Redis runs on the same machine, but no worker, which would use the loop's CPU cores. Blocks with and without
    reports alternate, so that other load affects both.
    """
    url = resources.settings.redis_url.get_secret_value()
    matrix = np.random.default_rng(0).random((192, 192))
    silent, reporting = [], []
    with threadpool_limits(1), Run(job_id=91, redis_url=url) as run:
        products = products_in(STEP_S, matrix)
        for _ in range(max(2, int(BLOCKS * scale))):
            silent.append(timed_block(matrix, products, lambda _step: None))
            reporting.append(timed_block(matrix, products, partial(report_step, run)))
    return statistics.median(silent) / statistics.median(reporting)


def _measured(call: Callable[[int], None], calls: int) -> CallTimes:
    taken = []
    for number in range(calls):
        began = time.perf_counter_ns()
        call(number)
        taken.append((time.perf_counter_ns() - began) / 1000)
    return CallTimes(statistics.median(taken), statistics.quantiles(taken, n=100)[-1])


def report_step(run: Run, step: int) -> None:
    """Report one step like a training: one line and three metric values."""
    run.log(f"step {step}")
    run.metric(step=step, loss=0.1, accuracy=0.9, lr=1e-3)


def products_in(seconds: float, matrix: np.ndarray) -> int:
    """Return the number of matrix products (of `matrix` with itself) that take about `seconds`."""
    products, began = 0, time.perf_counter()
    while time.perf_counter() - began < 50 * seconds:
        matrix @ matrix
        products += 1
    return max(1, products // 50)


def timed_block(matrix: np.ndarray, products: int, report: Callable[[int], None]) -> float:
    """Return the seconds of a block of steps; each computes `products` matrix products and calls `report`."""
    began = time.perf_counter()
    for step in range(BLOCK_STEPS):
        for _ in range(products):
            matrix @ matrix
        report(step)
    return time.perf_counter() - began
