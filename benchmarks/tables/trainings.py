"""Benchmarks of the trainers' side, and of restarts of the processes that trainers need."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from benchmarks import (
    capture,
    over_https,
    restart,
    trainer,
    trainers,
)
from benchmarks.stores import empty
from benchmarks.tables.markdown import begin_table, show
from trainwire.workers.resources import Resources


def sdk_cost(resources: Resources, scale: float) -> None:
    """Measure the time of SDK calls, and the slowdown of a training loop that reports every step."""
    empty(resources)
    begin_table("call", "median, microseconds", "p99", "wanted p99")
    for name, taken in trainer.call_times(resources, scale).items():
        show(f"| `{name}` | {taken.median:.1f} | {taken.p99:.1f} | 20 |")
    share = trainer.loop_speed(resources, scale)
    show(f"\nA loop of 10 ms a step runs at {share:.3f} of its speed without trainwire (wanted: 0.99)")


def https_cost(resources: Resources, scale: float) -> None:
    """Compare lines/s from `log()` to Redis, and the time of a training step, over HTTPS and directly to Redis."""
    found = over_https.compare(resources, scale)
    begin_table("to Redis, lines/s", "over HTTPS, lines/s", "ratio", "wanted", "a training step", "wanted")
    show(
        f"| {found.redis_lines_per_s:,.0f} | {found.https_lines_per_s:,.0f} | "
        f"{found.https_lines_per_s / found.redis_lines_per_s:.2f} | 0.5 | {found.slowdown:.3f} of its time with "
        "Redis | 1.05 |"
    )


def launcher_cost(resources: Resources, scale: float) -> None:
    """Measure the time of a command that prints continuously, under the launcher and into a plain pipe."""
    begin_table("lines of", "MB", "lines", "plain pipe, s", "under the launcher, s", "MB/s", "lines/s", "left out")
    for case in capture.CASES:
        empty(resources)
        took = capture.measure(resources, case, scale)
        megabytes, lines = case.megabytes * scale, took.lines
        show(
            f"| {case.name} | {megabytes:,.0f} | {lines:,} | {took.plain_s:.2f} | {took.seconds:.2f} | "
            f"{megabytes / took.seconds:,.0f} | {lines / took.seconds:,.0f} | {took.left_out / lines:.1%} |"
        )


def restarts(_: Resources, scale: float) -> None:
    """Kill the worker of `trainwire up` twenty times, and its stores; measure the time until rows are stored."""
    begin_table("killed", "kills", "median, s", "slowest, s", "wanted", "CPU of the new process, s")
    for outage in restart.measure(scale):
        wanted = "1.0 and 1.5" if outage.name == "worker" else "1.0 after it accepts connections"
        cpu_s = f"{statistics.median(outage.cpu_s):.2f}" if outage.cpu_s else ""
        seconds = f"{statistics.median(outage.seconds):.2f} | {max(outage.seconds):.2f}"
        show(f"| {outage.name} | {len(outage.seconds)} | {seconds} | {wanted} | {cpu_s} |")


def live_trainers(resources: Resources, scale: float, sizes: Sequence[int] = trainers.SIZES) -> None:
    """Measure thousands of live trainers with default settings: latency, backlog, CPU and memory."""
    show(f"\nA line a second, five values every five seconds, heartbeats; {trainers.MEASURED_S:.0f} s measured")
    kinds: list[str] = []
    began = time.monotonic()
    for size in sizes:
        if time.monotonic() - began > trainers.LATEST_START_S:
            show(f"\nNo time is left for {size:,} trainers: choose them with --trainers")
            break
        found = trainers.measure(resources, max(1, int(size * scale)), trainers.MEASURED_S)
        if not kinds:
            kinds = [*found.cores]
            begin_table(
                *(
                    "trainers",
                    "lines and points/s",
                    "stored/s",
                    "p50, s",
                    "p95, s",
                    "worst, s",
                    "waiting",
                    "lag at the end, s",
                ),
                *(
                    "lines an entry",
                    "Valkey, MB",
                    "CPU µs a line or point",
                    *(f"{kind}, cores" for kind in kinds),
                ),
                *("simulation late, s", "resent"),
            )
        cores = " | ".join(f"{found.cores[kind]:.2f}" for kind in kinds)
        lag = "not drained" if found.lag_s is None else f"{found.lag_s:.1f}"
        latencies = f"{found.p50_s:.2f} | {found.p95_s:.2f} | {found.max_s:.2f}"
        show(
            f"| {int(size * scale):,} | {found.rows_per_s:,.0f} | {found.stored_per_s:,.0f} | {latencies} | "
            f"{found.waiting:,} | {lag} | {found.lines_per_entry:.2f} | {found.valkey_mb:.0f} | "
            f"{found.microseconds:.0f} | {cores} | {found.late_s:.2f} | {found.resent:,} |"
        )
