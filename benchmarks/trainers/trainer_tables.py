"""Benchmarks of the trainers' side, and of restarts of the processes that trainers need."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from benchmarks.report import HUNDREDTHS, TENTHS, TEXT, WHOLE, Report, Table, show
from benchmarks.stores import empty
from benchmarks.trainers import capture, live_trainers, over_https, restart, sdk_cost
from trainwire.workers.resources import Resources


def cost_of_calls(resources: Resources, scale: float, report: Report) -> None:
    """Measure the time of SDK calls, and the slowdown of a training loop that reports every step."""
    empty(resources)
    columns = {"call": TEXT, "median, µs": TENTHS, "p99, µs": TENTHS, "wanted p99, µs": WHOLE}
    table = report.table("trainer", columns)
    for name, taken in sdk_cost.call_times(resources, scale).items():
        table.add(f"`{name}`", taken.median, taken.p99, 20)
    share = sdk_cost.loop_speed(resources, scale)
    columns = {"loop of 10 ms a step, speed to that without trainwire": "{:.3f}", "wanted": HUNDREDTHS}
    report.table("training loop", columns).add(share, 0.99)


def https_cost(resources: Resources, scale: float, report: Report) -> None:
    """Compare lines/s from `log()` to Redis, and the time of a training step, over HTTPS and directly to Redis."""
    found = over_https.compare(resources, scale)
    columns = {"to Redis, lines/s": WHOLE, "over HTTPS, lines/s": WHOLE, "ratio (wanted: 0.5)": HUNDREDTHS}
    table = report.table("https", columns | {"a training step, ratio to Redis (wanted: 1.05)": "{:.3f}"})
    ratio = found.https_lines_per_s / found.redis_lines_per_s
    table.add(found.redis_lines_per_s, found.https_lines_per_s, ratio, found.slowdown)


def launcher_cost(resources: Resources, scale: float, report: Report) -> None:
    """Measure the time of a command that prints continuously, under the launcher and into a plain pipe."""
    times = {"plain pipe, s": HUNDREDTHS, "under the launcher, s": HUNDREDTHS}
    columns = {"lines of": TEXT, "MB": WHOLE, "lines": WHOLE, **times, "MB/s": WHOLE, "lines/s": WHOLE}
    table = report.table("capture", {**columns, "left out": "{:.1%}"})
    for case in capture.CASES:
        empty(resources)
        took = capture.measure(resources, case, scale)
        megabytes, lines = case.megabytes * scale, took.lines
        rates = megabytes / took.seconds, lines / took.seconds
        table.add(case.name, megabytes, lines, took.plain_s, took.seconds, *rates, took.left_out / lines)


def restarts(_: Resources, scale: float, report: Report) -> None:
    """Kill the worker of `trainwire up` twenty times, and its stores; measure the time until rows are stored."""
    columns = {"killed": TEXT, "kills": WHOLE, "median, s": HUNDREDTHS, "slowest, s": HUNDREDTHS, "wanted": TEXT}
    table = report.table("restart", {**columns, "CPU of the new process, s": HUNDREDTHS})
    for outage in restart.measure(scale):
        wanted = "1.0 and 1.5" if outage.name == "worker" else "1.0 after it accepts connections"
        cpu_s = statistics.median(outage.cpu_s) if outage.cpu_s else None
        seconds = statistics.median(outage.seconds), max(outage.seconds)
        table.add(outage.name, len(outage.seconds), *seconds, wanted, cpu_s)


def many_live_trainers(
    resources: Resources, scale: float, report: Report, sizes: Sequence[int] = live_trainers.SIZES
) -> None:
    """Measure thousands of live trainers with default settings: latency, backlog, CPU and memory."""
    seconds = ("p50, s", "p95, s", "worst, s")
    columns = {
        "trainers": WHOLE,
        "lines and points/s": WHOLE,
        "stored/s": WHOLE,
        **dict.fromkeys(seconds, HUNDREDTHS),
    }
    columns |= {"waiting": WHOLE, "lag at the end, s": TENTHS, "lines an entry": HUNDREDTHS, "Valkey, MB": WHOLE}
    columns |= {"CPU µs a line or point": WHOLE}
    late = {"simulation late, s": HUNDREDTHS, "resent": WHOLE}
    table: Table | None = None
    began = time.monotonic()
    for size in sizes:
        if time.monotonic() - began > live_trainers.LATEST_START_S:
            show(f"\nNo time is left for {size:,} trainers: choose them with --trainers")
            break
        trainers = max(1, int(size * scale))
        found = live_trainers.measure(resources, trainers, live_trainers.MEASURED_S)
        if table is None:
            cores = dict.fromkeys([f"{kind}, cores" for kind in found.cores], HUNDREDTHS)
            table = report.table("trainers", columns | cores | late)
        rates, times = (found.rows_per_s, found.stored_per_s), (found.p50_s, found.p95_s, found.max_s)
        costs = found.waiting, found.lag_s, found.lines_per_entry, found.valkey_mb, found.microseconds
        table.add(trainers, *rates, *times, *costs, *found.cores.values(), found.late_s, found.resent)
