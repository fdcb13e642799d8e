"""Benchmarks of reading: charts of very large jobs, and the list of jobs."""

from __future__ import annotations

from dataclasses import replace

from benchmarks import (
    charts,
    job_list,
    reading,
)
from benchmarks.stores import empty
from benchmarks.tables.markdown import begin_table, show
from trainwire.workers.resources import Resources


def many_points(resources: Resources, scale: float) -> None:
    """Measure very large jobs: the time to build their rollups, and to return their charts over HTTP."""
    for number, size in enumerate(charts.SIZES):
        empty(resources)
        names = max(size.per_row, int(size.names * scale) // size.per_row * size.per_row)
        scaled = replace(size, names=names, points=max(100, int(size.points * scale)))
        times = charts.measure(resources, scaled)
        if number == 0:
            begin_table("names x points", "build, s per million", "bytes per point (rows)", *times.requests)
        latencies = " | ".join(f"{taken:.0f} ms" for taken in times.requests.values())
        disk = f"{times.block_bytes:.1f} ({times.row_bytes:.1f})"
        show(f"| {scaled.names:,} x {scaled.points:,} | {times.build_s:.2f} | {disk} | {latencies} |")

    beside = charts.BESIDE_MLFLOW
    scaled = replace(beside, points=max(1000, int(beside.points * scale)))
    show(f"\nThe same {scaled.names} names x {scaled.points:,} points in trainwire and in MLflow (SQLite)")
    begin_table("request", "trainwire", "MLflow", "ratio")
    empty(resources)
    for what, ours, theirs in charts.beside_mlflow(resources, scaled):
        show(f"| {what} | {ours:.0f} ms | {theirs:.0f} ms | {theirs / ours:.1f} |")


def list_of_jobs(resources: Resources, scale: float) -> None:
    """Measure requests for pages of a list of 10,000 jobs, sorted, filtered and page after page."""
    empty(resources)
    jobs = max(500, int(10_000 * scale))
    begin_table(f"request of {jobs:,} jobs", "median", "slowest", "wanted")
    for what, usual, slowest in job_list.measure(resources, jobs):
        show(f"| {what} | {usual:.0f} ms | {slowest:.0f} ms | 300 ms |")


def large_database(resources: Resources, scale: float) -> None:
    """Measure reads among 10,000 jobs, 50 million lines and 20 million points, while 5,000 lines/s come in."""
    empty(resources)
    begin_table("read", "median", "p95", "wanted p95", "largest response, KB")
    for found in reading.measure(resources, scale):
        times = f"{found.median_ms:.0f} ms | {found.p95_ms:.0f} ms | 300 ms"
        show(f"| {found.name} | {times} | {found.most_bytes / 1000:,.0f} |")
