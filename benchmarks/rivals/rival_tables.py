"""The benchmark of the same work with trainwire, MLflow and Trackio."""

from __future__ import annotations

from benchmarks.report import HUNDREDTHS, TEXT, WHOLE, Report
from benchmarks.rivals import speed
from trainwire.workers.resources import Resources


def same_work(_: Resources, scale: float, report: Report) -> None:
    """Measure a training that reports ten values a step as fast as possible, with each tracker."""
    steps = max(20, int(speed.STEPS * scale))
    columns = {"tracker": TEXT, "values": WHOLE, "values/s": WHOLE, "call, median, µs": WHOLE}
    columns |= {"all calls, s": HUNDREDTHS, "with the last call, s": HUNDREDTHS}
    columns |= {"CPU of the training, s": HUNDREDTHS, "CPU of the server, s": HUNDREDTHS, "steps missing": WHOLE}
    table = report.table("trackers", columns)
    for name in speed.NAMES:
        found = speed.measure(name, steps)
        seconds = found.calls_s, found.total_s, found.training_cpu_s, found.server_cpu_s
        table.add(name, found.values, found.values / found.total_s, found.median_us, *seconds, found.missing)
