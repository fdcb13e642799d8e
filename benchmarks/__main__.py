"""`make bench`: executes the benchmarks of docs/benchmarks.md and prints Markdown tables."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final

import psutil
from sqlalchemy import text

from benchmarks import trainers
from benchmarks.processes import start_by_forks
from benchmarks.stores import open_stores
from benchmarks.tables import drains, readers, receivers, trainings
from benchmarks.tables.markdown import show
from trainwire.workers.resources import Resources

BENCHMARKS: Final[dict[str, Callable[[Resources, float], None]]] = {
    "logs": drains.logs,
    "tasks": drains.tasks,
    "metrics": drains.metrics,
    "backlog": drains.backlog,
    "jobs": drains.quiet_jobs,
    "cpu": drains.cpu,
    "latency": receivers.idle_latency,
    "events": receivers.event_latency,
    "feed": receivers.live_feed,
    "deliveries": receivers.loki,
    "mlflow": receivers.mirror,
    "trainer": trainings.sdk_cost,
    "https": trainings.https_cost,
    "capture": trainings.launcher_cost,
    "hostile": drains.hostile_entries,
    "quiet": drains.quiet_beside_flood,
    "list": readers.list_of_jobs,
    "charts": readers.many_points,
    "reading": readers.large_database,
    "restart": trainings.restarts,
    "trainers": trainings.live_trainers,
}
ALONE: Final = {"charts", "reading", "trainers"}
"""Benchmarks that are executed only with `--only`, because they take very long."""


def main() -> int:
    """Execute the chosen benchmarks; return the exit code 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the usual amounts (0.1: a quick run)")
    parser.add_argument("--forks", action="store_true", help="start workers faster, for a smoke test")
    parser.add_argument("--only", choices=[*BENCHMARKS])
    parser.add_argument("--trainers", type=int, nargs="+", default=trainers.SIZES, help="numbers of live trainers")
    options = parser.parse_args()
    if options.forks:
        start_by_forks()
    chosen = BENCHMARKS | {"trainers": partial(trainings.live_trainers, sizes=options.trainers)}
    with open_stores() as resources:
        show(machine(resources))
        for name, bench in chosen.items():
            if options.only == name or (options.only is None and name not in ALONE):
                bench(resources, options.scale)
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
