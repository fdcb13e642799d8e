"""Benchmarks of the way from the committed row to subscribers, browsers, Loki and MLflow."""

from __future__ import annotations

from benchmarks import (
    deliveries,
    events,
    feed,
    latency,
    load,
    mlflow,
)
from benchmarks.processes import drain_with_a_worker
from benchmarks.stores import empty
from benchmarks.tables.markdown import begin_table, show
from trainwire.schemas.keys import DEFAULT_SHARDS, shard_of
from trainwire.workers.resources import Resources

SHARD = shard_of(load.JOB, DEFAULT_SHARDS)
FEED_CASES = (
    (f"/jobs/{feed.JOB}/ws", "WebSocket", 2000, "150"),
    (f"/jobs/{feed.JOB}/ws", "WebSocket", 100, ""),
    (f"/jobs/{feed.JOB}/events", "server-sent events", 1000, ""),
)


def idle_latency(resources: Resources, scale: float) -> None:
    """Measure the time from `run.log()` to the committed row on an idle system."""
    for flush_interval_s in (0.05, 0.005):
        empty(resources)
        median, p95 = latency.log_to_row_ms(resources, flush_interval_s, scale)
        show(
            f"\nIdle, from run.log() to the committed row: median {median:.0f} ms, p95 {p95:.0f} ms, "
            f"of which the SDK's flush interval is up to {flush_interval_s * 1000:.0f} ms (wanted: p95 under 100)"
        )


def event_latency(resources: Resources, scale: float) -> None:
    """Measure the time from the commit to the event at a subscriber of the job's channel, on an idle system."""
    empty(resources)
    median, p95 = events.commit_to_subscriber_ms(resources, scale)
    show(
        f"\nIdle, from the commit to the subscriber of events:<job_id>: median {median:.1f} ms, "
        f"p95 {p95:.1f} ms (wanted: p95 under 20)"
    )


def live_feed(resources: Resources, scale: float) -> None:
    """Measure the time from the commit of log lines to the sockets of all clients, at 1,000 lines per second."""
    begin_table(
        "clients of one job",
        "median, ms",
        "p95",
        "worst",
        "frames/s",
        "MB/s",
        "gateway, cores",
        "MB",
        "wanted p95",
    )
    for path, transport, most_clients, wanted in FEED_CASES:
        empty(resources)
        clients = max(int(most_clients * min(scale, 1)), 10)
        found = feed.commit_to_sockets(resources, path, clients, max(10 * min(scale, 1), 3))
        show(
            f"| {clients:,} by {transport} | {found.median_ms:.0f} | {found.p95_ms:.0f} | {found.worst_ms:.0f} | "
            f"{found.frames_per_s:.0f} | {found.megabytes_per_s:.0f} | {found.gateway_cpu:.2f} | "
            f"{found.gateway_mb:.0f} | {wanted} |"
        )


def loki(resources: Resources, scale: float) -> None:
    """Measure deliveries of a backlog to a fake Loki server, and the latency of one line.

    The baseline is plain pushes of the same lines.
    """
    begin_table("lines a job", "jobs", "to Loki, lines/s", "requests", "plain pushes, lines/s", "ratio")
    for lines, most_jobs in ((10, 2000), (100, 1000), (1000, 200)):
        empty(resources)
        jobs = max(int(most_jobs * scale), 4)
        show(f"| {lines} | {jobs} | {shown(jobs * lines, deliveries.catch_up(resources, jobs, lines, scale))} |")
    begin_table(
        "a line every", "lines a job", "jobs", "to Loki, lines/s", "requests", "plain pushes, lines/s", "ratio"
    )
    for step_s, day, jobs in ((60, 1440, 60), (1, 86_400, 4), (1, 86_400, 1)):
        empty(resources)
        lines = max(int(day * scale), 100)
        went = deliveries.catch_up(resources, jobs, lines, scale, step_s)
        show(f"| {step_s} s | {lines} | {jobs} | {shown(jobs * lines, went)} |")
    empty(resources)
    median, p95 = deliveries.row_to_loki_ms(resources, scale)
    show(
        f"\nIdle, from the committed row to the line in Loki: median {median:.0f} ms, p95 {p95:.0f} ms, "
        "of which the linger is 100 ms (wanted: p95 under 300)"
    )


def shown(lines: int, went: deliveries.CatchUp) -> str:
    """Return the rates of the delivery of a backlog as columns of a Markdown table."""
    rate, plain = lines / went.seconds, lines / went.plain_seconds
    return f"{rate:,.0f} | {went.requests:,} | {plain:,.0f} | {rate / plain:.2f}"


def mirror(resources: Resources, scale: float) -> None:
    """Compare metric values/s into trainwire with those of MLflow's client; measure deliveries to MLflow."""
    with mlflow.server() as target:
        begin_table(
            "values a call", "into trainwire, values/s", "MlflowClient.log_batch, values/s", "ratio", "wanted"
        )
        for points, calls, messages, wanted in ((1, 200, 30_000, 20), (100, 40, 4000, 10)):
            direct = mlflow.log_batch(target, points, max(int(calls * scale), 10))
            empty(resources)
            made = load.metric_bodies(points * max(int(messages * scale), 100), mlflow.NAMES, points)
            values = load.publish(resources.redis, made) * points * mlflow.NAMES
            rate = values / drain_with_a_worker(resources, "metrics", SHARD, "training_metrics").seconds
            show(f"| {points * mlflow.NAMES} | {rate:,.0f} | {direct:,.0f} | {rate / direct:,.0f} | {wanted} |")
        for jobs in (1, 8):
            empty(resources)
            values = mlflow.NAMES * max(int(4000 * scale), 100)
            rate = mlflow.drain_mirror(resources, target, jobs, values // jobs)
            show(f"\nThe mirror of {jobs} jobs with {values:,} values in all: {rate:,.0f} values/s")
