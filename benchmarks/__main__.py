"""`make bench`: executes the benchmarks of docs/benchmarks.md, prints tables, and draws plots of their figures."""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final

import psutil
from sqlalchemy import text

from benchmarks.deliveries import delivery_tables
from benchmarks.drains import drain_tables
from benchmarks.plots import draw
from benchmarks.processes import ROOT, start_by_forks
from benchmarks.reading import reading_tables
from benchmarks.report import TEXT, WHOLE, Report, show
from benchmarks.rivals import rival_tables
from benchmarks.stores import open_stores
from benchmarks.trainers import live_trainers, trainer_tables
from trainwire.workers.resources import Resources

BENCHMARKS: Final[dict[str, Callable[[Resources, float, Report], None]]] = {
    "logs": drain_tables.logs,
    "tasks": drain_tables.tasks,
    "metrics": drain_tables.metrics,
    "backlog": drain_tables.backlog,
    "jobs": drain_tables.quiet_jobs,
    "cpu": drain_tables.cpu,
    "latency": delivery_tables.idle_latency,
    "events": delivery_tables.event_latency,
    "feed": delivery_tables.live_feed,
    "deliveries": delivery_tables.loki_backlog,
    "mlflow": delivery_tables.mlflow_values,
    "trackers": rival_tables.same_work,
    "trainer": trainer_tables.cost_of_calls,
    "https": trainer_tables.https_cost,
    "capture": trainer_tables.launcher_cost,
    "hostile": drain_tables.hostile_entries,
    "quiet": drain_tables.quiet_beside_flood,
    "list": reading_tables.list_of_jobs,
    "charts": reading_tables.many_points,
    "reading": reading_tables.large,
    "restart": trainer_tables.restarts,
    "trainers": trainer_tables.many_live_trainers,
}
ALONE: Final = {"charts", "reading", "trainers"}
"""Benchmarks that are executed only with `--only`, because they take very long."""


def main() -> int:
    """Execute the chosen benchmarks; return the exit code 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the usual amounts (0.1: a quick run)")
    parser.add_argument("--only", choices=[*BENCHMARKS], nargs="+", help="only these")
    parser.add_argument("--skip", choices=[*BENCHMARKS], nargs="+", default=[], help="all but these")
    parser.add_argument(
        "--trainers", type=int, nargs="+", default=live_trainers.SIZES, help="numbers of live trainers"
    )
    parser.add_argument(
        "--output", type=Path, default=ROOT / "build/benchmarks", help="folder of figures and plots"
    )
    parser.add_argument("--forks", action="store_true", help="start workers faster, for a smoke test")
    options = parser.parse_args()
    if options.forks:
        start_by_forks()
    sized = {"trainers": partial(trainer_tables.many_live_trainers, sizes=options.trainers)}
    chosen = options.only or [name for name in BENCHMARKS if name not in ALONE | {*options.skip}]
    with open_stores() as resources:
        report = Report(machine(resources), options.scale)
        show(report.machine)
        taken: dict[str, float] = {}
        for name in chosen:
            began = time.monotonic()
            (BENCHMARKS | sized)[name](resources, options.scale, report)
            taken[name] = time.monotonic() - began
            report.write(options.output / "figures.json")
    table = report.table("seconds", {"benchmark": TEXT, "took, s": WHOLE})
    for name, seconds in taken.items():
        table.add(name, seconds)
    draw(options.output / "figures.json", options.output)
    return 0


def machine(resources: Resources) -> str:
    """Return a line with the hardware and the versions of the software under test."""
    with resources.engine.connect() as connection:
        postgres = connection.execute(text("SHOW server_version")).scalar_one()
    valkey = resources.redis.info("server").get("valkey_version", "?")
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    memory_gb = psutil.virtual_memory().total / 2**30
    return (
        f"Machine: {psutil.cpu_count()} cores ({model}), {memory_gb:.0f} GB, Python {platform.python_version()}, "
        f"PostgreSQL {postgres}, Valkey {valkey}, Celery {version('celery')}, kombu {version('kombu')}"
    )


if __name__ == "__main__":
    sys.exit(main())
