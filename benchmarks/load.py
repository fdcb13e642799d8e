"""Builds and publishes the messages of the benchmarks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import redis

from trainwire.schemas.keys import DEFAULT_SHARDS, shard_of, stream_key
from trainwire.schemas.wire.entries import encode_entry
from trainwire.schemas.wire.messages import KIND_OF_BODY, Body, Logs, Message, Metrics, Point

JOB = 1
LINE = "epoch 12 step 004711 loss=0.123456 acc=0.98 lr=0.001 throughput=1234 img/s gpu=78% mem=12G eta=00:12"
"""About 100 bytes; similar to the output of a training."""


def log_bodies(lines: int, per_message: int) -> Iterator[Logs]:
    """Yield messages with `per_message` log lines each, `lines` in total."""
    for _ in range(lines // per_message):
        now = time.time_ns()
        yield Logs(log_type="stdout", lines=[LINE] * per_message, ts=[now] * per_message)


def metric_bodies(points: int, values: int, per_message: int) -> Iterator[Metrics]:
    """Yield messages with `per_message` points each, `points` in total; each point has `values` metrics."""
    measured = {"loss": 0.1234567, "accuracy": 0.98, "learning_rate": 0.001}
    measured |= {f"layer{number}/grad_norm": 1.2345 + number for number in range(values - 3)}
    chosen = dict(list(measured.items())[:values])
    for number in range(points // per_message):
        now = time.time_ns()
        made = [Point(ts=now, epoch=1, step=number * per_message + n, values=chosen) for n in range(per_message)]
        yield Metrics(points=made)


def publish(client: redis.Redis, bodies: Iterator[Body]) -> int:
    """Append the messages to the stream of job 1, as a trainer does; return their number."""
    pipeline = client.pipeline(transaction=False)
    count = 0
    for count, body in enumerate(bodies, 1):
        kind = KIND_OF_BODY[type(body)]
        entry = encode_entry(Message(kind, JOB, 1, "0-bench", count, body))
        pipeline.xadd(stream_key(kind, shard_of(JOB, DEFAULT_SHARDS)), cast("Any", entry))
        if count % 500 == 0:
            pipeline.execute()
    pipeline.execute()
    return count


def log_entry(job: int, seq: int, lines: Sequence[str]) -> Any:
    """Return the fields of a stream entry with these log lines, whose times are one nanosecond apart."""
    now = time.time_ns()
    body = Logs(log_type="stdout", lines=[*lines], ts=[now + number for number in range(len(lines))])
    return encode_entry(Message("logs", job, 1, "0-bench", seq, body))
