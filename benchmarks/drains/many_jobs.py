"""Measures thousands of jobs with few messages each: lines/s, bytes per line, and a check of their heartbeats."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import text

from benchmarks.load import LINE, log_entry
from benchmarks.processes import drain_with_a_worker
from trainwire.schemas.keys import DEFAULT_SHARDS, alive_field, alive_key, shard_of, stream_key
from trainwire.schemas.wire.heartbeats import Heartbeat, encode_heartbeat
from trainwire.workers.liveness.heartbeat_reader import read_heartbeats
from trainwire.workers.liveness.job_status import LostRule, update_statuses
from trainwire.workers.resources import Resources

SHARD = 0


@dataclass(frozen=True)
class Round:
    """Lines/s of a drain, bytes per message in Redis, and bytes per row in Postgres (with indexes)."""

    lines_per_s: float
    redis_bytes: float
    postgres_bytes: float


def rounds(resources: Resources, jobs: int, messages: int, start: int = 1) -> Round:
    """Publish `messages` messages of one line from each of `jobs` jobs in turn, then drain them with a worker.

    All jobs are in one shard.
    """
    total, rows_before = jobs * messages, _bytes_of_rows(resources)
    memory = _memory(resources)
    for seq in range(start, start + messages):
        publish_round(resources, jobs, seq)
    waiting = _memory(resources) - memory
    drained = drain_with_a_worker(resources, "logs", SHARD, "training_logs")
    grown = _bytes_of_rows(resources) - rows_before
    return Round(total / drained.seconds, waiting / total, grown / total)


def seconds_to_watch(resources: Resources, jobs: int) -> float:
    """Return the seconds of a check of the heartbeats of `jobs` running jobs, none of which changes its status."""
    pipeline = resources.redis.pipeline(transaction=False)
    now_ms = time.time_ns() // 10**6
    for job in _job_ids(jobs):
        beat = Heartbeat(job=job, source="0-bench", at=now_ms, attempt=1, host="bench", pid=1, since=1.0)
        pipeline.hset(alive_key(SHARD), alive_field(job, beat.source), encode_heartbeat(beat))
    pipeline.execute()
    for _ in range(2):
        began = time.perf_counter()
        update_statuses(resources.engine, read_heartbeats(resources.redis, DEFAULT_SHARDS, 20), LostRule(60))
        took = time.perf_counter() - began
    return took


def _job_ids(jobs: int) -> range:
    ids = range(DEFAULT_SHARDS, DEFAULT_SHARDS * (jobs + 1), DEFAULT_SHARDS)
    assert {shard_of(job, DEFAULT_SHARDS) for job in ids} == {SHARD}
    return ids


def publish_round(resources: Resources, jobs: int, seq: int) -> None:
    """Publish one message with sequence number `seq` from each of `jobs` jobs."""
    pipeline = resources.redis.pipeline(transaction=False)
    for job in _job_ids(jobs):
        pipeline.xadd(stream_key("logs", SHARD), log_entry(job, seq, [LINE]))
    pipeline.execute()


def _memory(resources: Resources) -> int:
    return int(resources.redis.info("memory")["used_memory"])


def _bytes_of_rows(resources: Resources) -> int:
    with resources.engine.connect() as connection:
        return int(connection.execute(text("SELECT pg_total_relation_size('training_logs')")).scalar_one())
