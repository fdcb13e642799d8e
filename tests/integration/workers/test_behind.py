"""Drains publish for how long messages have waited, and trainers collect larger messages meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from tests.factories import Sender, drain, logs, metrics, rows
from trainwire import Run, TrainerSettings
from trainwire.schemas.keys import BEHIND_TTL_MS, DEFAULT_SHARDS, FREQUENT_KINDS, behind_key, shard_of, stream_key
from trainwire.schemas.tables import training_logs
from trainwire.schemas.wire.body_decoding import decode_body
from trainwire.schemas.wire.entries import open_envelope
from trainwire.schemas.wire.messages import Logs
from trainwire.workers.resources import Resources

JOB = 42
SHARD = shard_of(JOB, DEFAULT_SHARDS)


def published(resources: Resources, shard: int = 1) -> list[int]:
    """Return the waits that are published for lines and metrics, 0 if none."""
    return [int(cast("bytes", resources.redis.get(behind_key(kind, shard)) or b"0")) for kind in FREQUENT_KINDS]


def ago(resources: Resources, seconds: float) -> str:
    """Return the id of an entry that was added so many seconds ago by the server's clock."""
    now_s, micros = resources.redis.time()
    return f"{int(now_s * 1000 + micros // 1000 - seconds * 1000)}-*"


def test_a_wait_is_published_and_expires(resources: Resources, sender: Sender) -> None:
    """Messages that waited two seconds are published for their kind and shard, for three seconds."""
    sender.send(logs("late"), entry_id=ago(resources, 2))
    drain(resources)
    waited_ms, of_metrics = published(resources)
    assert 2000 <= waited_ms < 60_000
    assert (of_metrics, published(resources, shard=2)) == (0, [0, 0])
    assert 0 < resources.redis.pttl(behind_key("logs", 1)) <= BEHIND_TTL_MS


def test_a_short_wait_is_not_published(resources: Resources, sender: Sender) -> None:
    """Without a backlog no key is written. The time is that of the server, not of the worker."""
    sender.send(logs("now"), entry_id=ago(resources, -30))
    sender.send(metrics(loss=1.0))
    for kind in FREQUENT_KINDS:
        drain(resources, kind)
    assert published(resources) == [0, 0]


def test_one_source_does_not_slow_down_the_others(resources: Resources, sender: Sender) -> None:
    """The wait is that of the median source: a source with a long backlog counts as one of them."""
    for _ in range(50):
        sender.send(logs("flood"), source="0-flood", entry_id=ago(resources, 20))
    for job in (1, 5, 9):
        sender.send(logs("quiet"), job=job, source="0-quiet", entry_id=ago(resources, -30))
    drain(resources)
    assert published(resources) == [0, 0]


@pytest.fixture
def trainer(resources: Resources) -> Iterator[Run]:
    """A run that sends to the Redis of the workers under test."""
    run = Run(JOB, settings=TrainerSettings(redis_url=resources.settings.redis_url.get_secret_value()))
    yield run
    run.finish(timeout_s=0)


def test_a_slow_drain_makes_messages_larger(resources: Resources, trainer: Run) -> None:
    """While drains come too late, a message gets more lines; all are stored once, in order."""
    lines, deadline = 0, time.monotonic() + 90
    while most_lines(resources) < 3 and time.monotonic() < deadline:
        drain(resources, "logs", JOB)
        for _ in range(16):
            trainer.log(f"line {lines}")
            lines += 1
            time.sleep(0.12)  # longer than the time after which lines are on the disk
    assert most_lines(resources) >= 3
    trainer.finish(timeout_s=60)
    drain(resources, "logs", JOB)
    assert rows(resources.engine, training_logs, "content") == [f"line {number}" for number in range(lines)]


def most_lines(resources: Resources) -> int:
    """Return the number of lines of the largest message in the stream of the trainer."""
    found = cast("list[Any]", resources.redis.xrange(stream_key("logs", SHARD)))
    bodies = [cast("Logs", decode_body("logs", open_envelope(fields))) for _, fields in found]
    return max((len(body.lines) for body in bodies), default=0)
