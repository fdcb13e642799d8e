"""Measures the time from a commit to the event at a subscriber, on an idle system with a real worker."""

from __future__ import annotations

import os
import statistics
import time
from functools import partial
from typing import Any

from redis.client import PubSub

from benchmarks.load import log_entry
from benchmarks.processes import running
from trainwire.schemas.events import decode_event
from trainwire.schemas.keys import DEFAULT_SHARDS, events_channel, shard_of
from trainwire.workers.drain.drain import Drain
from trainwire.workers.drain.stream import IngestStream
from trainwire.workers.resources import Resources

JOB = 77
EVENTS = 300
WARM_UP = 10
PAUSE_S = 0.02
"""Pause between two lines, in which the worker becomes idle again."""
DEADLINE_S = 5


class StampedStream(IngestStream):
    """Records the time of each commit: the drain calls `settle` directly after it."""

    committed_at = 0.0

    def settle(self, *arguments: Any, **options: Any) -> None:
        """Record the current time as `committed_at`, then settle as usual."""
        self.committed_at = time.perf_counter()
        super().settle(*arguments, **options)


def commit_to_subscriber_ms(resources: Resources, events: int) -> tuple[float, float]:
    """Return the median and 95th percentile from the commit to the event, in milliseconds.

    The drain runs in this process, so that the time of its commit is known. It sends an order through Redis to a
    real worker, which publishes the event to a subscriber in this process.
    """
    os.environ["REDIS_URL"] = resources.settings.redis_url.get_secret_value()
    os.environ["DATABASE_URL"] = resources.settings.database_url.get_secret_value()
    from trainwire.workers.orders.order_sender import order_notify  # noqa: PLC0415 - reads the environment

    stream = StampedStream(resources.redis, "logs", shard_of(JOB, DEFAULT_SHARDS))
    drain = Drain(resources.engine, stream, resources.settings, on_commit=partial(order_notify, resources))
    taken = []
    with (
        running(resources, "trainwire.workers", "worker", "--concurrency", "2"),
        PubSub(resources.redis.connection_pool, ignore_subscribe_messages=True) as listener,
    ):
        listener.subscribe(events_channel(JOB))
        for number in range(events):
            resources.redis.xadd(stream.key, log_entry(JOB, number + 1, [f"line {number + 1}"]))
            drain.run()
            wait_for_line(listener, number + 1)
            taken.append((time.perf_counter() - stream.committed_at) * 1000)
            time.sleep(PAUSE_S)
    taken = taken[WARM_UP:]  # the first ones also open connections
    return statistics.median(taken), statistics.quantiles(taken, n=20)[-1]


def wait_for_line(listener: PubSub, seq: int) -> None:
    """Wait for the event whose last line has this sequence number."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        message = listener.get_message(timeout=DEADLINE_S)
        if message is not None and decode_event(message["data"]).last_seq == seq:
            return
    raise AssertionError(f"no event of line {seq} within {DEADLINE_S} s")
