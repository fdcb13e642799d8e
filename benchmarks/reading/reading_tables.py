"""Benchmarks of reading: charts of very large jobs, and the list of jobs."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.reading import charts, job_list, large_database
from benchmarks.report import HUNDREDTHS, MILLISECONDS, TENTHS, TEXT, WHOLE, Report, Table
from benchmarks.stores import empty
from trainwire.workers.resources import Resources


def many_points(resources: Resources, scale: float, report: Report) -> None:
    """Measure very large jobs: the time to build their rollups, and to return their charts over HTTP."""
    table: Table | None = None
    for size in charts.SIZES:
        empty(resources)
        names = max(size.per_row, int(size.names * scale) // size.per_row * size.per_row)
        scaled = replace(size, names=names, points=max(100, int(size.points * scale)))
        times = charts.measure(resources, scaled)
        if table is None:
            sizes = {"bytes per point": TENTHS, "bytes per point in rows": TENTHS}
            columns = {"names": WHOLE, "points of each": WHOLE, "build, s per million": HUNDREDTHS, **sizes}
            table = report.table("charts", columns | dict.fromkeys(times.requests, MILLISECONDS))
        sizes_of = times.build_s, times.block_bytes, times.row_bytes
        table.add(scaled.names, scaled.points, *sizes_of, *times.requests.values())

    beside = charts.BESIDE_MLFLOW
    scaled = replace(beside, points=max(1000, int(beside.points * scale)))
    columns = {f"request, {scaled.names} names x {scaled.points:,} points": TEXT}
    columns |= {"trainwire": MILLISECONDS, "MLflow (SQLite)": MILLISECONDS, "ratio": TENTHS}
    table = report.table("charts beside MLflow", columns)
    empty(resources)
    for what, ours, theirs in charts.beside_mlflow(resources, scaled):
        table.add(what, ours, theirs, theirs / ours)


def list_of_jobs(resources: Resources, scale: float, report: Report) -> None:
    """Measure requests for pages of a list of 10,000 jobs, sorted, filtered and page after page."""
    empty(resources)
    jobs = max(500, int(10_000 * scale))
    columns = {f"request of {jobs:,} jobs": TEXT, "median": MILLISECONDS, "slowest": MILLISECONDS}
    table = report.table("list", {**columns, "wanted": MILLISECONDS})
    for what, usual, slowest in job_list.measure(resources, jobs):
        table.add(what, usual, slowest, 300)


def large(resources: Resources, scale: float, report: Report) -> None:
    """Measure reads among 10,000 jobs, 50 million lines and 20 million points, while 5,000 lines/s come in."""
    empty(resources)
    times = dict.fromkeys(("median", "p95", "wanted p95"), MILLISECONDS)
    table = report.table("reading", {"read": TEXT, **times, "largest response, KB": WHOLE})
    for found in large_database.measure(resources, scale):
        table.add(found.name, found.median_ms, found.p95_ms, 300, found.most_bytes / 1000)
