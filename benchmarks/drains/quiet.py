"""Measures the time from XADD to the committed row for one job's lines while another job floods the same shard."""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import time
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from typing import Final, Literal

import redis
from sqlalchemy import text

from benchmarks.load import LINE, log_entry
from benchmarks.processes import running
from benchmarks.stores import empty
from trainwire.schemas.keys import stream_key
from trainwire.workers.resources import Resources

Flood = Literal["nothing", "valid", "invalid"]
FLOODING, QUIET, SHARD = 4, 8, 0
"""Ids of the two jobs, and their shard (of four)."""
EVERY_S: Final = 0.1
POLL_S: Final = 0.02
"""Resolution of the delays; more frequent queries would compete with the drain for the processor."""


@dataclass(frozen=True)
class Delays:
    """Latency of the quiet job's lines in seconds, lines sent and stored, and rate and backlog of the flood."""

    median: float
    p95: float
    sent: int
    stored: int
    flood_per_s: float
    backlog: int


def delays(resources: Resources, flood: Flood, per_s: int, seconds: float) -> Delays:
    """Measure for `seconds`, with a real worker and a flood of `per_s` messages per second."""
    empty(resources)
    stop = multiprocessing.Event()
    url = resources.settings.redis_url.get_secret_value()
    flooding = multiprocessing.Process(target=_flood, args=(url, flood, per_s, stop), daemon=True)
    with (
        running(resources, "trainwire.workers", "worker", "--concurrency", "2", DRAIN_SLICE_S="5"),
        running(resources, "trainwire.workers", "beat", ready="beat"),
    ):
        _publish(resources.redis, 1)
        taken: dict[int, float] = {}
        while not taken:  # excludes the start of worker and beat
            _record_commits(resources, taken)
        flooding.start()
        sent: dict[int, float] = {}
        began = time.time()
        for number in itertools.count(2):
            if time.time() - began > seconds:
                break
            sent[number] = time.time()
            _publish(resources.redis, number)
            while time.time() < sent[number] + EVERY_S:
                _record_commits(resources, taken)
                time.sleep(POLL_S)
        deadline = time.time() + 30
        while len(taken) <= len(sent) and time.time() < deadline:
            _record_commits(resources, taken)
            time.sleep(POLL_S)
        stop.set()
        flooding.join(10)
        backlog = resources.redis.xlen(stream_key("logs", SHARD))
        flooded = int(resources.redis.get("benchmark:flood") or 0)
    now = time.time()
    waited = sorted(taken.get(number, now) - at for number, at in sent.items())
    return Delays(
        statistics.median(waited),
        statistics.quantiles(waited, n=20)[-1],
        len(sent),
        len(taken) - 1,
        flooded / seconds,
        backlog,
    )


def _publish(client: redis.Redis, number: int) -> None:
    client.xadd(stream_key("logs", SHARD), log_entry(QUIET, number, [f"line {number}"]))


def _record_commits(resources: Resources, taken: dict[int, float]) -> None:
    """Record the current time for each line committed since the last call."""
    with resources.engine.connect() as connection:
        last = connection.execute(text(f"SELECT last_log_seq FROM training_jobs WHERE id = {QUIET}")).scalar() or 0
    now = time.time()
    for number in range(len(taken) + 1, last + 1):
        taken[number] = now


def _flood(url: str, flood: Flood, per_s: int, stop: Event) -> None:
    client = redis.Redis.from_url(url)
    began, seq = time.time(), 0
    while flood != "nothing" and not stop.is_set():
        pipeline = client.pipeline(transaction=False)
        for _ in range(min(1000, max(1, per_s // 20))):
            seq += 1
            entry = log_entry(FLOODING, seq, [LINE])
            pipeline.xadd(stream_key("logs", SHARD), entry | ({"enc": "x"} if flood == "invalid" else {}))
        pipeline.set("benchmark:flood", seq)
        pipeline.execute()
        time.sleep(max(0.0, began + seq / per_s - time.time()))
