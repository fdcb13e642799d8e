"""Real workers publish events of their commits, and store rows also when they cannot publish."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import pytest
import redis
from redis.client import PubSub

from tests.factories import Sender, logs, rows
from tests.processes import WAIT_S, Process, wait_until, workers_running
from trainwire import Run
from trainwire.ingest.settings.trainer_settings import TrainerSettings
from trainwire.schemas.events import (
    Event,
    TrainingCheckpoint,
    TrainingComplete,
    TrainingError,
    TrainingLog,
    TrainingProgress,
    TrainingStatus,
    decode_event,
)
from trainwire.schemas.keys import BEAT_QUEUE, INGEST_QUEUE, NOTIFY_QUEUE, events_channel
from trainwire.schemas.tables import training_logs
from trainwire.workers.events.notify import MAX_WAITING_ORDERS
from trainwire.workers.resources import Resources

JOB = 42


class Subscriber:
    """A subscriber to one job that keeps the events it receives."""

    def __init__(self, pubsub: PubSub) -> None:
        self._pubsub = pubsub
        self.events: list[Event] = []

    def wait_for(self, condition: Callable[[Event], object], what: str, timeout_s: float = WAIT_S) -> Event:
        """Wait until an event meets the condition; the failure names the condition."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            message = self._pubsub.get_message(timeout=0.5)
            if message is not None:
                event = decode_event(message["data"])
                self.events.append(event)
                if condition(event):
                    return event
        raise AssertionError(f"not received within {timeout_s:.0f} s: {what}; received {self.events}")


@pytest.mark.usefixtures("subscriber")
def test_a_sweep_publishes_events_of_its_rows(resources: Resources, sender: Sender, tmp_path: Path) -> None:
    """Drains without orders publish their events as well."""
    sender.send(logs("swept"), job=JOB)
    sweep = Process(resources.settings, tmp_path / "sweep.log", "sweep").start()
    assert sweep.process.wait(60) == 0, sweep.output
    assert len(rows(resources.engine, training_logs, "content")) == 1
    (order,) = resources.redis.lrange(NOTIFY_QUEUE, 0, -1)
    body = base64.b64decode(msgspec.json.decode(order)["body"])
    assert b"training_log" in body
    assert b"swept" in body


@pytest.fixture
def subscriber(client: redis.Redis) -> Iterator[Subscriber]:
    """A subscriber of the job's channel, subscribed before any message is sent."""
    with PubSub(client.connection_pool, ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(events_channel(JOB))
        pubsub.get_message(timeout=WAIT_S)
        yield Subscriber(pubsub)


@pytest.fixture
def trainer(resources: Resources) -> TrainerSettings:
    """Give the settings of a trainer on the test Redis."""
    return replace(TrainerSettings.from_env(), redis_url=resources.settings.redis_url.get_secret_value())


def carries(text: str, event: Event) -> bool:
    """Return whether an event has this log line."""
    return isinstance(event, TrainingLog) and text in {line.text for line in event.lines or []}


def is_a(event_type: type[Event], event: Event) -> bool:
    """Return whether an event is of this type."""
    return isinstance(event, event_type)


def test_events_of_a_run_arrive_in_order(
    resources: Resources, trainer: TrainerSettings, subscriber: Subscriber, tmp_path: Path
) -> None:
    """The events of a trainer reach a subscriber in order: lines, metrics, checkpoint, end."""
    weights = tmp_path / "best.pt"
    weights.write_bytes(b"weights")
    with workers_running(resources.settings, tmp_path), Run(job_id=JOB, settings=trainer) as run:
        run.log("one")
        run.log('<b>two</b> "quoted"')
        subscriber.wait_for(partial(carries, '<b>two</b> "quoted"'), "the lines")
        run.metric(epoch=1, loss=0.0, accuracy=float("nan"))
        subscriber.wait_for(lambda event: isinstance(event, TrainingProgress) and event.metrics, "the metrics")
        run.checkpoint(weights, kind="best")
        subscriber.wait_for(partial(is_a, TrainingCheckpoint), "the checkpoint")
        run.finish("completed")
        subscriber.wait_for(partial(is_a, TrainingComplete), "the end")
    assert any(isinstance(event, TrainingStatus) and event.status == "running" for event in subscriber.events)
    # The run's first message (no rows) reports its start; its stream is drained in parallel with the lines.
    types = [type(event) for event in subscriber.events if event.last_seq or event.kind == "completions"]
    assert list(dict.fromkeys(types)) == [TrainingLog, TrainingProgress, TrainingCheckpoint, TrainingComplete]
    (metrics,) = [event for event in subscriber.events if isinstance(event, TrainingProgress) and event.metrics]
    assert metrics.metrics == {"loss": 0.0, "accuracy": "NaN"}
    lines = [line for event in subscriber.events if isinstance(event, TrainingLog) for line in event.lines or []]
    assert sorted((line.seq, line.text) for line in lines) == [(1, "one"), (2, '<b>two</b> "quoted"')]


def test_events_of_a_failing_run_have_its_traceback(
    resources: Resources, trainer: TrainerSettings, subscriber: Subscriber, tmp_path: Path
) -> None:
    """An exception in the training becomes a traceback line and a training_error."""
    with workers_running(resources.settings, tmp_path):
        with pytest.raises(ZeroDivisionError), Run(job_id=JOB, settings=trainer):
            print(1 / 0)
        event = subscriber.wait_for(partial(is_a, TrainingError), "the error")
    assert isinstance(event, TrainingError)
    assert event.status == "failed"
    assert "division by zero" in (event.error_message or "")
    lines = [line for event in subscriber.events if isinstance(event, TrainingLog) for line in event.lines or []]
    assert [line.text.startswith("TRACEBACK:") for line in lines] == [True]


@pytest.mark.usefixtures("subscriber")
def test_orders_without_a_consumer_delay_nothing(resources: Resources, sender: Sender, tmp_path: Path) -> None:
    """With no worker on the queue of the notifier, rows are stored, and its queue stops growing."""
    resources.redis.rpush(NOTIFY_QUEUE, *["{}"] * (MAX_WAITING_ORDERS - 2))
    queues = f"{INGEST_QUEUE},{BEAT_QUEUE}"
    worker = Process(resources.settings, tmp_path / "worker.log", "worker", "--queues", queues)
    beat = Process(resources.settings, tmp_path / "beat.log", "beat")
    try:
        for process in (worker, beat):
            process.start()
        for number in range(1, 5):
            sender.send(logs(f"line {number}"), job=JOB)
            wait_until(partial(has_lines, resources, number), f"row {number}")
        wait_until(lambda: "notify.dropped" in worker.output, "the worker's log line")
    finally:
        beat.stop()
        worker.stop()
    assert resources.redis.llen(NOTIFY_QUEUE) == MAX_WAITING_ORDERS


def test_a_redis_that_publishes_nothing_holds_nothing_up(
    resources: Resources, sender: Sender, subscriber: Subscriber, tmp_path: Path
) -> None:
    """If PUBLISH is refused the rows are stored, and later events have the following numbers."""
    resources.redis.acl_setuser("default", enabled=True, commands=["-publish"])
    try:
        with workers_running(resources.settings, tmp_path) as (worker,):
            sender.send(logs("unheard"), job=JOB)
            wait_until(lambda: "notify.unavailable" in worker.output, "the refusal")
            assert lines_of(resources) == ["unheard"]
            resources.redis.acl_setuser("default", enabled=True, commands=["+publish"])
            sender.send(logs("heard"), job=JOB)
            event = subscriber.wait_for(partial(carries, "heard"), "the next line")
    finally:
        resources.redis.acl_setuser("default", enabled=True, commands=["+publish"])
    assert (event.first_seq, event.last_seq) == (2, 2)
    assert subscriber.events == [event]


def has_lines(resources: Resources, count: int) -> bool:
    """Return whether there are exactly this many rows."""
    return len(lines_of(resources)) == count


def lines_of(resources: Resources) -> list[str]:
    """Return all stored lines."""
    return rows(resources.engine, training_logs, "content")
