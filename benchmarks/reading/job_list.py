"""Measures requests for pages of a list of 10,000 jobs: sorted, filtered, grouped, and page after page."""

from __future__ import annotations

import json
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from statistics import median
from typing import Any, Final

from sqlalchemy import text

from benchmarks.processes import running_gateway
from trainwire.schemas.tables import ROLLUPS_CURSOR
from trainwire.stack.persisted_config import free_port
from trainwire.workers.resources import Resources

POINTS: Final = 100
"""Points per job; each has values of 10 metrics."""
NAMES: Final = 10
REPEATS: Final = 5
SORTS: Final = (
    "",
    "-started",
    "name",
    "-duration",
    "params.p7",
    "tags.team",
    "machine",
    "-ranks",
    "metrics.m3",
    "metrics.m3.min",
    "-metrics.m3.max",
    "metrics.m3.best",
    "metrics.none.min",
)
FILTERS: Final = ("params.p7 < 0.5 and status = completed", "metrics.m3.min < 0.01", "tags.team = t3")

_JOBS: Final = text(
    "INSERT INTO training_jobs (id, name, status, attempt, created_at, started_at, completed_at, params, tags, "
    "final_metrics, best_metrics, last_metric_seq) SELECT n, 'job ' || n % 97, 'completed', 1, began, began, "
    "began + n % 1000 * interval '1 s', "
    "(SELECT jsonb_object_agg('p' || p, random()) FROM generate_series(1, 30) p), "
    "jsonb_build_object('team', 't' || n % 7), CASE WHEN n % 2 = 0 THEN jsonb_build_object('m3', random()) END, "
    "jsonb_build_object('m3', random()), :points "
    "FROM (SELECT n, now() - n * interval '1 minute' AS began FROM generate_series(1, :jobs) n) AS numbered"
)
_ATTEMPTS: Final = text(
    "INSERT INTO training_attempts (job_id, attempt, status, changes, provenance) SELECT n, 1, 'completed', 1, "
    "jsonb_build_object('host', jsonb_build_object('name', 'gpu-' || n % 64)) FROM generate_series(1, :jobs) n"
)
_POINTS: Final = text(
    "INSERT INTO training_metrics (job_id, seq, logged_at, attempt, source, step, extra_metrics) "
    "SELECT job, point, now(), 1, '0-bench', point, (SELECT jsonb_object_agg('m' || name, random()) "
    "FROM generate_series(1, :names) name) FROM generate_series(1, :jobs) job, generate_series(1, :points) point"
)
_SERIES: Final = text(
    "INSERT INTO metric_series (job_id, series, attempt, name, low, high) "
    "SELECT job, name, 1, 'm' || name, random(), 1 + random() "
    "FROM generate_series(1, :jobs) job, generate_series(1, :names) name"
)
_CURSORS: Final = text(
    "INSERT INTO delivery_cursors (sink, job_id, confirmed_seq) "
    "SELECT :cursor, n, :points FROM generate_series(1, :jobs) n"
)


def measure(resources: Resources, jobs: int) -> Iterator[tuple[str, float, float]]:
    """Yield (request, median milliseconds, slowest milliseconds)."""
    store(resources, jobs)
    port = free_port()
    with running_gateway(resources, port):
        url = f"http://127.0.0.1:{port}/jobs"
        page(url)  # the first request opens connections
        for sort in SORTS:
            yield f"sorted by {sort or 'nothing'}", *timed(url, sort=sort)
        for written in FILTERS:
            yield f"filter {written}", *timed(url, filter=written)
        yield "groups by team", *timed(f"{url}/groups", by="tags.team")
        for sort in ("", "metrics.m3.min"):
            yield f"all pages, each, sorted by {sort or 'nothing'}", *summed(scrolled(url, sort))


def store(resources: Resources, jobs: int) -> None:
    """Insert jobs with parameters and points, and the minimum and maximum of each metric."""
    amounts = {"jobs": jobs, "points": POINTS, "names": NAMES, "cursor": ROLLUPS_CURSOR}
    with resources.engine.begin() as connection:
        for statement in (_JOBS, _ATTEMPTS, _POINTS, _SERIES, _CURSORS):
            connection.execute(statement, amounts)
    with resources.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        tables = "training_jobs, training_attempts, training_metrics, metric_series, delivery_cursors"
        connection.execute(text(f"VACUUM ANALYZE {tables}"))


def scrolled(url: str, sort: str) -> Iterator[float]:
    """Yield the milliseconds of each page, from the first to the last."""
    cursor = ""
    while cursor is not None:
        taken, answer = page(url, sort=sort, cursor=cursor)
        cursor = answer["next"]
        yield taken


def timed(url: str, **query: str) -> tuple[float, float]:
    """Repeat a request; return the median and the slowest milliseconds."""
    return summed(page(url, **query)[0] for _ in range(REPEATS))


def summed(taken: Iterator[float]) -> tuple[float, float]:
    """Return the median and the maximum of some times."""
    found = list(taken)
    return median(found), max(found)


def page(url: str, **query: str) -> tuple[float, Any]:
    """Request one page of 100 jobs, as the web page does.

    Return the milliseconds until it is received, and its JSON.
    """
    given = {name: value for name, value in query.items() if value} | ({} if "by" in query else {"limit": "100"})
    began = time.perf_counter()
    with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(given)}") as answer:
        data = answer.read()
    return 1000 * (time.perf_counter() - began), json.loads(data)
