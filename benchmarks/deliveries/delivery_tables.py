"""Benchmarks of the way from the committed row to subscribers, browsers, Loki and MLflow."""

from __future__ import annotations

from benchmarks import load
from benchmarks.deliveries import events, feed, latency, loki, mlflow
from benchmarks.processes import drain_with_a_worker
from benchmarks.report import HUNDREDTHS, TENTHS, TEXT, WHOLE, Report
from benchmarks.stores import empty
from trainwire.schemas.keys import DEFAULT_SHARDS, shard_of
from trainwire.workers.resources import Resources

SHARD = shard_of(load.JOB, DEFAULT_SHARDS)
FEED_CASES = (
    (f"/jobs/{feed.JOB}/ws", "WebSocket", 2000, 150),
    (f"/jobs/{feed.JOB}/ws", "WebSocket", 100, None),
    (f"/jobs/{feed.JOB}/events", "server-sent events", 1000, None),
)

LOKI_CASES = (
    (0.001, 10, 2000),
    (0.001, 100, 1000),
    (0.001, 1000, 200),
    (60, 1440, 60),
    (1, 86_400, 4),
    (1, 86_400, 1),
)
"""Seconds between two lines of a job, lines per job, and jobs."""


def amount(usual: int, scale: float, least: int) -> int:
    """Return the share `scale` of the usual amount: at most that amount, and at least `least`."""
    return max(least, round(usual * min(scale, 1)))


def idle_latency(resources: Resources, scale: float, report: Report) -> None:
    """Measure the time from `run.log()` to the committed row on an idle system."""
    columns = {"the SDK's flush interval, ms": TEXT, "from run.log() to the committed row, median, ms": WHOLE}
    table = report.table("latency", {**columns, "p95, ms (wanted: under 100)": WHOLE})
    empty(resources)
    with latency.workers(resources):
        for job, flush_interval_ms in enumerate((50, 5), 1):
            lines = amount(latency.LINES, scale, 20)
            table.add(flush_interval_ms, *latency.log_to_row_ms(resources, job, flush_interval_ms / 1000, lines))


def event_latency(resources: Resources, scale: float, report: Report) -> None:
    """Measure the time from the commit to the event at a subscriber of the job's channel, on an idle system."""
    empty(resources)
    columns = {"from the commit to the subscriber, median, ms": TENTHS, "p95, ms (wanted: under 20)": TENTHS}
    report.table("events", columns).add(
        *events.commit_to_subscriber_ms(resources, amount(events.EVENTS, scale, 40))
    )


def live_feed(resources: Resources, scale: float, report: Report) -> None:
    """Measure the time from the commit of log lines to the sockets of all clients, at 1,000 lines per second."""
    whole = ("median, ms", "p95, ms", "worst, ms", "frames/s", "MB/s")
    columns = {"clients of one job": WHOLE, "by": TEXT} | dict.fromkeys(whole, WHOLE)
    columns |= {"gateway, cores": HUNDREDTHS, "gateway, MB": WHOLE, "wanted p95, ms": WHOLE}
    table = report.table("feed", columns)
    for path, transport, most_clients, wanted in FEED_CASES:
        empty(resources)
        clients = max(int(most_clients * min(scale, 1)), 10)
        found = feed.commit_to_sockets(resources, path, clients, max(10 * min(scale, 1), 3))
        times = found.median_ms, found.p95_ms, found.worst_ms
        rates = found.frames_per_s, found.megabytes_per_s
        table.add(clients, transport, *times, *rates, found.gateway_cpu, found.gateway_mb, wanted)


def loki_backlog(resources: Resources, scale: float, report: Report) -> None:
    """Measure deliveries of a backlog to a fake Loki server, and the latency of one line.

    The baseline is plain pushes of the same lines.
    """
    numbers = ("lines a job", "jobs", "to Loki, lines/s", "requests", "plain pushes, lines/s")
    columns = {"a line every, s": TEXT} | dict.fromkeys(numbers, WHOLE) | {"ratio": HUNDREDTHS}
    table = report.table("deliveries", columns)
    for step_s, most_lines, most_jobs in LOKI_CASES:
        empty(resources)
        # A backlog of jobs is shortened by its jobs, a backlog of a day by the lines of each job.
        lines = max(int(most_lines * scale), 100) if step_s >= 1 else most_lines
        jobs = max(int(most_jobs * scale), 4) if step_s < 1 else most_jobs
        went = loki.catch_up(resources, jobs, lines, step_s, amount(loki.ROUNDS, scale, 1))
        rate, plain = jobs * lines / went.seconds, jobs * lines / went.plain_seconds
        table.add(step_s, lines, jobs, rate, went.requests, plain, rate / plain)
    empty(resources)
    columns = {"from the committed row to Loki, median, ms": WHOLE, "p95, ms (wanted: under 300)": WHOLE}
    report.table("delivery latency", columns).add(*loki.row_to_loki_ms(resources, amount(loki.LINES, scale, 20)))


def mlflow_values(resources: Resources, scale: float, report: Report) -> None:
    """Compare metric values/s into trainwire with those of MLflow's client; measure deliveries to MLflow."""
    columns = {"values a call": WHOLE, "into trainwire, values/s": WHOLE}
    columns |= {"MlflowClient.log_batch, values/s": WHOLE, "ratio": WHOLE, "wanted": WHOLE}
    with mlflow.server() as target:
        table = report.table("mlflow", columns)
        for points, calls, messages, wanted in ((1, 200, 30_000, 20), (100, 40, 4000, 10)):
            direct = mlflow.log_batch(target, points, max(int(calls * scale), 10))
            empty(resources)
            made = load.metric_bodies(points * max(int(messages * scale), 100), mlflow.NAMES, points)
            values = load.publish(resources.redis, made) * points * mlflow.NAMES
            rate = values / drain_with_a_worker(resources, "metrics", SHARD, "training_metrics").seconds
            table.add(points * mlflow.NAMES, rate, direct, rate / direct, wanted)
        mirrored = report.table(
            "mirror", {"jobs": WHOLE, "values": WHOLE, "from Postgres to MLflow, values/s": WHOLE}
        )
        for jobs in (1, 8):
            empty(resources)
            values = mlflow.NAMES * max(int(4000 * scale), 100)
            mirrored.add(jobs, values, mlflow.drain_mirror(resources, target, jobs, values // jobs))
