"""Measures the time from the commit of log lines to thousands of clients, with a real worker and gateway."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from bisect import bisect_left
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import psutil
import redis

from benchmarks.deliveries.events import StampedStream
from benchmarks.load import LINE, log_entry
from benchmarks.processes import ROOT, running, running_gateway
from trainwire.schemas.keys import DEFAULT_SHARDS, shard_of
from trainwire.stack.persisted_config import free_port
from trainwire.workers.drain.drain import Drain
from trainwire.workers.resources import Resources

JOB = 77
LINES_PER_S = 1000
MESSAGES_PER_S = 20
"""Same interval as in the SDK, which sends the lines of 50 ms as one message."""
WARM_UP_S = 1.0


@dataclass(frozen=True)
class FeedLatency:
    """Latency from the commit to the sockets, throughput, and CPU (in cores) and memory of the gateway."""

    median_ms: float
    p95_ms: float
    worst_ms: float
    frames_per_s: float
    megabytes_per_s: float
    gateway_cpu: float
    gateway_mb: float


def commit_to_sockets(resources: Resources, path: str, clients: int, seconds: float) -> FeedLatency:
    """Send 1,000 lines per second to clients of `path` for `seconds`, and return the latency.

    Fails if a watched client misses a line.
    """
    os.environ["REDIS_URL"] = resources.settings.redis_url.get_secret_value()
    os.environ["DATABASE_URL"] = resources.settings.database_url.get_secret_value()
    from trainwire.workers.orders.order_sender import order_notify  # noqa: PLC0415 - reads the environment

    stream = StampedStream(resources.redis, "logs", shard_of(JOB, DEFAULT_SHARDS))
    drain = Drain(resources.engine, stream, resources.settings, on_commit=partial(order_notify, resources))
    port = free_port()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a socket for each client; children inherit it
    with (
        running(resources, "trainwire.workers", "worker", "--concurrency", "1"),
        running_gateway(resources, port) as gateway,
    ):
        resources.redis.xadd(stream.key, log_entry(JOB, 1, [LINE]))
        drain.run()
        messages = int(seconds * MESSAGES_PER_S)
        last = 1 + messages * LINES_PER_S // MESSAGES_PER_S
        command = [sys.executable, "-m", "benchmarks.deliveries.feed_clients", "127.0.0.1", str(port), path]
        with subprocess.Popen([*command, str(clients), str(last)], cwd=ROOT, stdout=subprocess.PIPE) as readers:
            assert readers.stdout is not None
            assert readers.stdout.readline() == b"ready\n"
            cpu = cpu_s(gateway)
            began_at = time.monotonic()
            commits = send_lines(resources.redis, drain, stream, messages)
            result = json.loads(readers.stdout.readline())
            took_s = time.monotonic() - began_at
        cpu = cpu_s(gateway) - cpu
        memory = gateway.memory_info().rss / 2**20
    taken = sorted(latencies(commits, result["watched"], last))
    return FeedLatency(
        median_ms=statistics.median(taken) * 1000,
        p95_ms=taken[int(len(taken) * 0.95)] * 1000,
        worst_ms=taken[-1] * 1000,
        frames_per_s=len(result["watched"][0]) / took_s,
        megabytes_per_s=result["least"] * clients / took_s / 1e6,
        gateway_cpu=cpu / took_s,
        gateway_mb=memory,
    )


def send_lines(client: redis.Redis, drain: Drain, stream: StampedStream, messages: int) -> list[tuple[int, float]]:
    """Store messages at a constant rate; return (last sequence number, time of the commit) of each."""
    commits = []
    per_message = LINES_PER_S // MESSAGES_PER_S
    began_at = time.monotonic()
    for number in range(messages):
        time.sleep(max(began_at + number / MESSAGES_PER_S - time.monotonic(), 0))
        client.xadd(stream.key, log_entry(JOB, number + 2, [LINE] * per_message))
        drain.run()
        commits.append((1 + (number + 1) * per_message, stream.committed_at))
    return commits


def latencies(
    commits: list[tuple[int, float]], watched: list[list[tuple[int, int, float]]], last: int
) -> list[float]:
    """Return the latency of each commit for each watched client, in seconds; fail if a client misses a line."""
    lasts = [seq for seq, _ in commits]
    taken: list[float] = []
    for frames in watched:
        assert frames[-1][1] == last
        assert all(first == before + 1 for (_, before, _), (first, _, _) in pairwise(frames))
        for first, end, at in frames:
            in_frame = range(bisect_left(lasts, first), bisect_left(lasts, end + 1))
            taken += [at - commits[index][1] for index in in_frame if index >= WARM_UP_S * MESSAGES_PER_S]
    return taken


def cpu_s(process: psutil.Process) -> float:
    """Return the CPU time of a process in seconds."""
    times = process.cpu_times()
    return float(times.user + times.system)
