"""`make bench`: executes the benchmarks of docs/benchmarks.md and prints Markdown tables."""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final, cast

import psutil
import zstandard
from sqlalchemy import text

from benchmarks import (
    baselines,
    capture,
    charts,
    cpu_per_line,
    deliveries,
    events,
    feed,
    hostile,
    job_list,
    latency,
    load,
    many_jobs,
    mlflow,
    over_https,
    quiet,
    restart,
    trainer,
    trainers,
)
from benchmarks.processes import Drained, drain_with_a_worker, running, wait_until
from benchmarks.stores import empty, open_stores
from trainwire.schemas.keys import DEFAULT_SHARDS, shard_of
from trainwire.workers.resources import Resources

SHARD = shard_of(load.JOB, DEFAULT_SHARDS)
LOG_CASES = {1: 150_000, 10: 800_000, 100: 1_500_000, 1000: 2_000_000}
"""Lines per message -> total number of lines to drain."""
FEED_CASES = (
    (f"/jobs/{feed.JOB}/ws", "WebSocket", 2000, "150"),
    (f"/jobs/{feed.JOB}/ws", "WebSocket", 100, ""),
    (f"/jobs/{feed.JOB}/events", "server-sent events", 1000, ""),
)
WANTED_LINES = {1: 15_000, 10: 80_000, 100: 150_000, 1000: 180_000}


def main() -> int:
    """Execute the chosen benchmarks; return the exit code 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the usual amounts (0.1: a quick run)")
    parser.add_argument("--only", choices=[*BENCHMARKS])
    parser.add_argument("--trainers", type=int, nargs="+", default=trainers.SIZES, help="numbers of live trainers")
    options = parser.parse_args()
    chosen = BENCHMARKS | {"trainers": partial(live_trainers, sizes=options.trainers)}
    with open_stores() as resources:
        show(machine(resources))
        for name, bench in chosen.items():
            if options.only == name or (options.only is None and name not in ALONE):
                bench(resources, options.scale)
    return 0


def show(line: str) -> None:
    """Print a line and flush stdout, because a benchmark takes minutes."""
    print(line, flush=True)


def begin_table(*columns: str) -> None:
    """Print the header of a Markdown table."""
    show(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")


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


def logs(resources: Resources, scale: float) -> None:
    """Measure lines/s from a full stream to committed rows, compared with plain COPY of the same rows.

    COPY is measured twice: with one commit per message, and with as many rows per commit as the drain has.
    """
    begin_table("lines a message", "lines/s", "wanted", "COPY by message", "ratio", "COPY by transaction", "ratio")
    for per_message, lines in LOG_CASES.items():
        count, drained = drain_logs(resources, int(lines * scale), per_message)
        with resources.engine.connect() as connection:
            transactions = connection.execute(
                text("SELECT count(DISTINCT xmin::text) FROM training_logs")
            ).scalar_one()
        rate, at_once = count / drained.seconds, count // transactions
        messages = baselines.read_rows(resources, per_message, min(count, 3000 * per_message))
        batches = baselines.read_rows(resources, at_once, count)
        by_message = plain_copy(resources, messages, per_message)
        by_batch = plain_copy(resources, batches, at_once)
        show(
            f"| {per_message} | {rate:,.0f} | {WANTED_LINES[per_message]:,} | {by_message:,.0f} | "
            f"{rate / by_message:.2f} | {by_batch:,.0f} at {at_once:,} rows | {rate / by_batch:.2f} |"
        )


def plain_copy(resources: Resources, batches: list[bytes], per_batch: int) -> float:
    """Return the lines/s of plain COPY into empty tables."""
    empty(resources)
    return len(batches) * per_batch / baselines.plain_copy(resources, batches)


def drain_logs(resources: Resources, lines: int, per_message: int) -> tuple[int, Drained]:
    """Publish lines, drain them with a real worker, and check that every line is stored.

    Return (lines, the measurement).
    """
    empty(resources)
    lines = load.publish(resources.redis, load.log_bodies(lines, per_message)) * per_message
    drained = drain_with_a_worker(resources, "logs", SHARD, "training_logs")
    assert baselines.rows_in(resources, "training_logs") == lines
    return lines, drained


def tasks(resources: Resources, scale: float) -> None:
    """Compare lines/s of one Celery task per message of ten lines with those of the drain, each in one process."""
    from os import environ  # noqa: PLC0415

    messages = int(4000 * scale)
    empty(resources)
    environ["REDIS_URL"] = resources.settings.redis_url.get_secret_value()
    environ["DATABASE_URL"] = resources.settings.database_url.get_secret_value()
    from benchmarks import task_per_message  # noqa: PLC0415 - reads the environment

    task_per_message.publish(messages, 10)
    first = text("SELECT extract(epoch FROM max(created_at) - min(created_at)) FROM training_logs")
    with running(
        resources,
        "celery",
        "-A",
        "benchmarks.task_per_message",
        "worker",
        "--concurrency",
        "1",
        "--loglevel",
        "INFO",
    ):
        wait_until(lambda: baselines.rows_in(resources, "training_logs") == messages * 10, 300)
    with resources.engine.connect() as connection:
        by_task = messages * 10 / float(connection.execute(first).scalar_one())
    lines, drained = drain_logs(resources, int(400_000 * scale), 10)
    rate = lines / drained.seconds
    show(
        f"\nOne Celery task per message of 10 lines: {by_task:,.0f} lines/s; the drain in the same run: "
        f"{rate:,.0f} lines/s, {rate / by_task:.0f} times as many (wanted: 20)"
    )


def metrics(resources: Resources, scale: float) -> None:
    """Measure metric values/s with 100 points per message, as the SDK sends them, and with one point."""
    begin_table("values a point", "points a message", "values/s", "wanted")
    for values, per_message, points, wanted in (
        (20, 100, 200_000, "300,000"),
        (20, 1, 60_000, ""),
        (1, 100, 600_000, "40,000"),
        (1, 1, 100_000, ""),
    ):
        empty(resources)
        made = load.metric_bodies(int(points * scale), values, per_message)
        count = load.publish(resources.redis, made) * per_message
        drained = drain_with_a_worker(resources, "metrics", SHARD, "training_metrics")
        assert baselines.rows_in(resources, "training_metrics") == count
        show(f"| {values} | {per_message} | {count * values / drained.seconds:,.0f} | {wanted} |")


def backlog(resources: Resources, scale: float) -> None:
    """Drain a backlog of five million lines.

    Measure the worker's memory, and its speed at the start and at the end.
    """
    lines, drained = drain_logs(resources, int(5_000_000 * scale), 100)
    samples = drained.samples
    fifth = len(samples) // 5
    growth = "too short to compare its end with its start"
    if fifth > 0:
        early, late = speed(samples[: fifth + 1]), speed(samples[-fifth - 1 :])
        growth = f"the last fifth costs {early / late:.2f} times the first (wanted: at most 1.3)"
    show(
        f"\nBacklog of {lines:,} lines, 100 a message: {lines / drained.seconds:,.0f} lines/s, pool process "
        f"at most {drained.peak_mb:.0f} MB RSS (wanted: under 200); {growth}"
    )


def quiet_jobs(resources: Resources, scale: float) -> None:
    """Drain one line per message from each of 10,000 jobs in turn.

    Measure the speed, bytes per message and per row, and the time of a check of the jobs' heartbeats.
    """
    empty(resources)
    jobs = max(int(10_000 * scale), 10)
    begin_table("messages of each job", "jobs", "lines/s", "bytes in Redis a message", "bytes in Postgres a row")
    for name, start, messages in (("the first", 1, 1), ("the next ten", 2, 10)):
        went = many_jobs.rounds(resources, jobs, messages, start)
        sizes = f"{went.redis_bytes:,.0f} | {went.postgres_bytes:,.0f}"
        show(f"| {name} | {jobs:,} | {went.lines_per_s:,.0f} | {sizes} |")
    took = many_jobs.seconds_to_watch(resources, jobs)
    show(f"\nA check of the heartbeats of {jobs:,} running jobs, without changes: {took * 1000:.0f} ms")


def cpu(resources: Resources, scale: float) -> None:
    """Measure the CPU time per line with one line per message, separately for Python, Postgres and Valkey."""
    empty(resources)
    begin_table("CPU µs a line", "Python: drain", "Python: events", "Postgres", "Valkey")
    for name, times in cpu_per_line.cases(resources, max(int(10_000 * scale), 10), max(int(40_000 * scale), 100)):
        show(f"| {name} | {times.drain:.1f} | {times.events:.1f} | {times.postgres:.1f} | {times.valkey:.1f} |")


def speed(samples: list[tuple[float, int]]) -> float:
    """Return rows/s between the first and the last of (second, rows) samples."""
    (began, first), (ended, last) = samples[0], samples[-1]
    return (last - first) / (ended - began)


def idle_latency(resources: Resources, _: float) -> None:
    """Measure the time from `run.log()` to the committed row on an idle system."""
    for flush_interval_s in (0.05, 0.005):
        empty(resources)
        median, p95 = latency.log_to_row_ms(resources, flush_interval_s)
        show(
            f"\nIdle, from run.log() to the committed row: median {median:.0f} ms, p95 {p95:.0f} ms, "
            f"of which the SDK's flush interval is up to {flush_interval_s * 1000:.0f} ms (wanted: p95 under 100)"
        )


def event_latency(resources: Resources, _: float) -> None:
    """Measure the time from the commit to the event at a subscriber of the job's channel, on an idle system."""
    empty(resources)
    median, p95 = events.commit_to_subscriber_ms(resources)
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
        show(f"| {lines} | {jobs} | {shown(jobs * lines, deliveries.catch_up(resources, jobs, lines))} |")
    begin_table(
        "a line every", "lines a job", "jobs", "to Loki, lines/s", "requests", "plain pushes, lines/s", "ratio"
    )
    for step_s, day, jobs in ((60, 1440, 60), (1, 86_400, 4), (1, 86_400, 1)):
        empty(resources)
        lines = max(int(day * scale), 100)
        went = deliveries.catch_up(resources, jobs, lines, step_s)
        show(f"| {step_s} s | {lines} | {jobs} | {shown(jobs * lines, went)} |")
    empty(resources)
    median, p95 = deliveries.row_to_loki_ms(resources)
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


def hostile_entries(resources: Resources, scale: float) -> None:
    """Measure the peak memory and CPU time of a drain for entries that are crafted to be expensive."""
    begin_table("entry", "bytes in Redis", "peak RSS, MB", "CPU, s", "becomes")
    cases = list(hostile.cases())
    for name, kind, encoding, body in cases[: max(3, round(len(cases) * scale))]:
        wire = len(zstandard.compress(body, 3)) if encoding.endswith("+zstd") else len(body)
        cost = hostile.cost(resources, kind, encoding, body)
        show(f"| {name} | {wire:,} | {cost.peak_mb:.0f} | {cost.cpu_s:.2f} | {cost.outcome} |")


def quiet_beside_flood(resources: Resources, scale: float) -> None:
    """Measure the latency of one job's lines while another job floods the stream of the same shard."""
    begin_table(
        "flood, messages/s", "of them came", "quiet lines", "stored", "median, s", "p95, s", "backlog at the end"
    )
    for flood, per_s in (("nothing", 1), ("valid", int(40_000 * scale)), ("invalid", int(40_000 * scale))):
        found = quiet.delays(resources, cast("quiet.Flood", flood), per_s, max(3.0, 15 * scale))
        show(
            f"| {flood}, {per_s:,} | {found.flood_per_s:,.0f}/s | {found.sent} | "
            f"{found.stored} | {found.median:.2f} | {found.p95:.2f} | {found.backlog:,} |"
        )


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


BENCHMARKS: Final[dict[str, Callable[[Resources, float], None]]] = {
    "logs": logs,
    "tasks": tasks,
    "metrics": metrics,
    "backlog": backlog,
    "jobs": quiet_jobs,
    "cpu": cpu,
    "latency": idle_latency,
    "events": event_latency,
    "feed": live_feed,
    "deliveries": loki,
    "mlflow": mirror,
    "trainer": sdk_cost,
    "https": https_cost,
    "capture": launcher_cost,
    "hostile": hostile_entries,
    "quiet": quiet_beside_flood,
    "list": list_of_jobs,
    "charts": many_points,
    "restart": restarts,
    "trainers": live_trainers,
}
ALONE: Final = {"charts", "trainers"}
"""Benchmarks that are executed only with `--only`, because they take very long."""

if __name__ == "__main__":
    sys.exit(main())
