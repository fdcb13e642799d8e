"""Benchmarks of the drain: its speed, its costs, and expensive entries."""

from __future__ import annotations

from typing import cast

import zstandard
from sqlalchemy import text

from benchmarks import load
from benchmarks.drains import baselines, cpu_per_line, hostile, many_jobs, quiet
from benchmarks.processes import Drained, drain_with_a_worker, running, wait_until
from benchmarks.report import HUNDREDTHS, MILLISECONDS, TENTHS, TEXT, WHOLE, Report
from benchmarks.stores import empty
from trainwire.schemas.keys import DEFAULT_SHARDS, shard_of
from trainwire.workers.resources import Resources

SHARD = shard_of(load.JOB, DEFAULT_SHARDS)
LOG_CASES = {1: 150_000, 10: 800_000, 100: 1_500_000, 1000: 2_000_000}
"""Lines per message -> total number of lines to drain."""
WANTED_LINES = {1: 15_000, 10: 80_000, 100: 150_000, 1000: 180_000}


def logs(resources: Resources, scale: float, report: Report) -> None:
    """Measure lines/s from a full stream to committed rows, compared with plain COPY of the same rows.

    COPY is measured twice: with one commit per message, and with as many rows per commit as the drain has.
    """
    table = report.table(
        "logs",
        {
            "lines a message": TEXT,
            "lines/s": WHOLE,
            "wanted": WHOLE,
            "COPY by message, lines/s": WHOLE,
            "ratio to COPY by message": HUNDREDTHS,
            "COPY by transaction, lines/s": WHOLE,
            "rows of a transaction": WHOLE,
            "ratio to COPY by transaction": HUNDREDTHS,
        },
    )
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
        wanted = WANTED_LINES[per_message]
        table.add(per_message, rate, wanted, by_message, rate / by_message, by_batch, at_once, rate / by_batch)


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


def tasks(resources: Resources, scale: float, report: Report) -> None:
    """Compare lines/s of one Celery task per message of ten lines with those of the drain, each in one process."""
    from os import environ  # noqa: PLC0415

    messages = int(4000 * scale)
    empty(resources)
    environ["REDIS_URL"] = resources.settings.redis_url.get_secret_value()
    environ["DATABASE_URL"] = resources.settings.database_url.get_secret_value()
    from benchmarks.drains import task_per_message  # noqa: PLC0415 - reads the environment

    task_per_message.publish(messages, 10)
    first = text("SELECT extract(epoch FROM max(created_at) - min(created_at)) FROM training_logs")
    with running(
        resources,
        "celery",
        "-A",
        "benchmarks.drains.task_per_message",
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
    columns = {"a task per message of 10 lines, lines/s": WHOLE, "the drain, lines/s": WHOLE, "ratio": WHOLE}
    report.table("tasks", {**columns, "wanted": TEXT}).add(by_task, rate, rate / by_task, 20)


def metrics(resources: Resources, scale: float, report: Report) -> None:
    """Measure metric values/s with 100 points per message, as the SDK sends them, and with one point."""
    columns = {"values a point": TEXT, "points a message": TEXT, "values/s": WHOLE, "wanted": WHOLE}
    table = report.table("metrics", columns)
    for values, per_message, points, wanted in (
        (20, 100, 200_000, 300_000),
        (20, 1, 60_000, None),
        (1, 100, 600_000, 40_000),
        (1, 1, 100_000, None),
    ):
        empty(resources)
        made = load.metric_bodies(int(points * scale), values, per_message)
        count = load.publish(resources.redis, made) * per_message
        drained = drain_with_a_worker(resources, "metrics", SHARD, "training_metrics")
        assert baselines.rows_in(resources, "training_metrics") == count
        table.add(values, per_message, count * values / drained.seconds, wanted)


def backlog(resources: Resources, scale: float, report: Report) -> None:
    """Drain a backlog of five million lines.

    Measure the worker's memory, and its speed at the start and at the end.
    """
    lines, drained = drain_logs(resources, int(5_000_000 * scale), 100)
    samples = drained.samples
    fifth = len(samples) // 5
    # Without samples the drain is too short to compare its end with its start.
    growth = speed(samples[: fifth + 1]) / speed(samples[-fifth - 1 :]) if fifth > 0 else None
    columns = {
        "backlog, lines": WHOLE,
        "lines/s": WHOLE,
        "pool process, MB RSS (wanted: under 200)": WHOLE,
        "cost of the last fifth to the first (wanted: at most 1.3)": HUNDREDTHS,
    }
    report.table("backlog", columns).add(lines, lines / drained.seconds, drained.peak_mb, growth)


def quiet_jobs(resources: Resources, scale: float, report: Report) -> None:
    """Drain one line per message from each of 10,000 jobs in turn.

    Measure the speed, bytes per message and per row, and the time of a check of the jobs' heartbeats.
    """
    empty(resources)
    jobs = max(int(10_000 * scale), 10)
    columns = {"messages of each job": TEXT, "jobs": WHOLE, "lines/s": WHOLE}
    columns |= {"bytes in Redis a message": WHOLE, "bytes in Postgres a row": WHOLE}
    table = report.table("jobs", columns)
    for name, start, messages in (("the first", 1, 1), ("the next ten", 2, 10)):
        went = many_jobs.rounds(resources, jobs, messages, start)
        table.add(name, jobs, went.lines_per_s, went.redis_bytes, went.postgres_bytes)
    took_ms = 1000 * many_jobs.seconds_to_watch(resources, jobs)
    report.table("heartbeats", {"running jobs": WHOLE, "check of their heartbeats": MILLISECONDS}).add(
        jobs, took_ms
    )


def cpu(resources: Resources, scale: float, report: Report) -> None:
    """Measure the CPU time per line with one line per message, separately for Python, Postgres and Valkey."""
    empty(resources)
    processes = ("Python: drain", "Python: events", "Postgres", "Valkey")
    table = report.table("cpu", {"CPU µs a line": TEXT} | dict.fromkeys(processes, TENTHS))
    for name, times in cpu_per_line.cases(resources, max(int(10_000 * scale), 10), max(int(40_000 * scale), 100)):
        table.add(name, times.drain, times.events, times.postgres, times.valkey)


def speed(samples: list[tuple[float, int]]) -> float:
    """Return rows/s between the first and the last of (second, rows) samples."""
    (began, first), (ended, last) = samples[0], samples[-1]
    return (last - first) / (ended - began)


def hostile_entries(resources: Resources, scale: float, report: Report) -> None:
    """Measure the peak memory and CPU time of a drain for entries that are crafted to be expensive."""
    columns = {
        "entry": TEXT,
        "bytes in Redis": WHOLE,
        "peak RSS, MB": WHOLE,
        "CPU, s": HUNDREDTHS,
        "becomes": TEXT,
    }
    table = report.table("hostile", columns)
    cases = list(hostile.cases())
    for name, kind, encoding, body in cases[: max(3, round(len(cases) * scale))]:
        wire = len(zstandard.compress(body, 3)) if encoding.endswith("+zstd") else len(body)
        cost = hostile.cost(resources, kind, encoding, body)
        table.add(name, wire, cost.peak_mb, cost.cpu_s, cost.outcome)


def quiet_beside_flood(resources: Resources, scale: float, report: Report) -> None:
    """Measure the latency of one job's lines while another job floods the stream of the same shard."""
    columns = {"flood": TEXT, "messages/s": WHOLE, "of them came, messages/s": WHOLE, "quiet lines": WHOLE}
    columns |= {"stored": WHOLE, "median, s": HUNDREDTHS, "p95, s": HUNDREDTHS, "backlog at the end": WHOLE}
    table = report.table("quiet", columns)
    for flood, per_s in (("nothing", 1), ("valid", int(40_000 * scale)), ("invalid", int(40_000 * scale))):
        found = quiet.delays(resources, cast("quiet.Flood", flood), per_s, max(3.0, 15 * scale))
        counts = found.flood_per_s, found.sent, found.stored
        table.add(flood, per_s, *counts, found.median, found.p95, found.backlog)
