"""Measures the CPU time of a drain per line, in this process, in Postgres and in Valkey.

On a shared machine, CPU time varies less than wall-clock time.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.drains import many_jobs
from benchmarks.load import JOB, LINE, log_entry
from benchmarks.processes import cpu_seconds, servers
from trainwire.schemas.events import decode_events
from trainwire.schemas.keys import DEFAULT_SHARDS, shard_of, stream_key
from trainwire.workers.drain.changes import Change
from trainwire.workers.drain.drain import Drain
from trainwire.workers.drain.stream import IngestStream
from trainwire.workers.events.notify import events_of, payloads, publish
from trainwire.workers.resources import Resources

NEXT_MESSAGES = 4
_PUBLISHED_AT_ONCE = 1000


@dataclass(frozen=True)
class CpuTimes:
    """CPU time per line in microseconds: Python for the drain, Python for its events, Postgres, Valkey."""

    drain: float
    events: float
    postgres: float
    valkey: float


def cases(resources: Resources, jobs: int, messages: int) -> Iterator[tuple[str, CpuTimes]]:
    """Yield (case, CPU times) for messages of one line.

    Args:
        resources: connections to empty stores.
        jobs: number of jobs in the cases with many jobs.
        messages: number of messages in the case with one job.
    """
    _publish_of_one_job(resources, messages)
    yield "one job", drain(resources, shard_of(JOB, DEFAULT_SHARDS), messages)
    many_jobs.publish_round(resources, jobs, 1)
    yield f"{jobs:,} jobs, the first", drain(resources, many_jobs.SHARD, jobs)
    for seq in range(2, 2 + NEXT_MESSAGES):
        many_jobs.publish_round(resources, jobs, seq)
    yield f"{jobs:,} jobs, the next {NEXT_MESSAGES}", drain(resources, many_jobs.SHARD, NEXT_MESSAGES * jobs)


def drain(resources: Resources, shard: int, lines: int) -> CpuTimes:
    """Drain a stream that has `lines` lines in this process, publish its events, and return the CPU times."""
    events_s = 0.0

    def publish_events(changes: list[Change]) -> None:
        nonlocal events_s
        began = time.process_time()
        for payload in payloads(events_of(changes)):
            publish(resources.redis, decode_events(payload.decode()))
        events_s += time.process_time() - began

    stream = IngestStream(resources.redis, "logs", shard)
    whole = Drain(resources.engine, stream, resources.settings, on_commit=publish_events)
    gc.collect()
    gc.freeze()  # as in a pool process
    postgres, valkey = servers(resources)
    postgres_s, valkey_s, began = cpu_seconds(postgres), cpu_seconds(valkey), time.process_time()
    stored = whole.run().stored
    while stored < lines:  # on a busy machine a time slice may be too short
        stored += whole.run().stored
    python_s = time.process_time() - began
    seconds = (python_s - events_s, events_s, cpu_seconds(postgres) - postgres_s, cpu_seconds(valkey) - valkey_s)
    return CpuTimes(*(1e6 * each / lines for each in seconds))


def _publish_of_one_job(resources: Resources, messages: int) -> None:
    key = stream_key("logs", shard_of(JOB, DEFAULT_SHARDS))
    for first in range(1, messages + 1, _PUBLISHED_AT_ONCE):
        pipeline = resources.redis.pipeline(transaction=False)
        for seq in range(first, min(first + _PUBLISHED_AT_ONCE, messages + 1)):
            pipeline.xadd(key, log_entry(JOB, seq, [LINE]))
        pipeline.execute()
