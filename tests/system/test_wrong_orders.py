"""Messages in the queues of real workers that are not work orders are dropped and logged."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tests.factories import Sender, logs
from tests.processes import ROOT, START_TIMEOUT_S, Process, wait_until, workers_running
from trainwire.schemas.keys import (
    BEAT_QUEUE,
    DELIVER_TASK,
    DRAIN_TASK,
    ECHO_TASK,
    INGEST_QUEUE,
    NOTIFY_QUEUE,
    NOTIFY_TASK,
    QUEUES,
    SWEEP_TASK,
    echo_key,
    events_channel,
)
from trainwire.workers.resources import Resources

Change = Callable[[dict[str, Any]], Any]


def order(
    task: str = DRAIN_TASK, args: Any = ("logs", 1), kwargs: Any = None, embedded: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return a message as Celery makes it."""
    links: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None} | (embedded or {})
    body = json.dumps([list(args) if isinstance(args, tuple) else args, kwargs or {}, links]).encode()
    headers: dict[str, Any] = {
        "lang": "py",
        "task": task,
        "id": "an-id",
        "root_id": "an-id",
        "parent_id": None,
        "group": None,
    }
    headers |= {"retries": 0, "eta": None, "expires": None, "timelimit": [None, None], "origin": "gen9@badhost"}
    return {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": {
            "correlation_id": "an-id",
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": INGEST_QUEUE},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": "a-tag",
        },
    }


def with_header(**headers: Any) -> bytes:
    """Return an order with other headers."""
    message = order()
    message["headers"] |= headers
    return json.dumps(message).encode()


def without(*path: str) -> bytes:
    """Return an order that lacks a header or property."""
    message = inner = order()
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    return json.dumps(message).encode()


def replaced(value: Any, *path: str) -> bytes:
    """Return an order with a value replaced."""
    message = inner = order()
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return json.dumps(message).encode()


DEEP = b"[" * 200_000
WRONG: dict[str, bytes] = {
    "text": b"x",
    "nothing": b"",
    "list": b"[]",
    "object": b"{}",
    "null": b"null",
    "number": b"1e999",
    "string": b'"x"',
    "not utf-8": b"\xff\xfe\x00",
    "deep": DEEP,
    "pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07",
    "typed": b'{"__type__": "datetime", "__value__": "x"}',
    **{
        f"without {'.'.join(path)}": without(*path)
        for path in (
            *(
                ("body",),
                ("headers",),
                ("properties",),
                ("content-type",),
                ("content-encoding",),
                ("headers", "task"),
            ),
            *(("headers", "id"), ("properties", "delivery_tag"), ("properties", "delivery_info")),
            *(("properties", "delivery_info", "routing_key"), ("properties", "body_encoding")),
        )
    },
    **{
        f"{value!r} as {'.'.join(path)}": replaced(value, *path)
        for value, path in (
            *(([], ("headers",)), (None, ("headers",)), ([], ("properties",)), (5, ("body",)), ("?", ("body",))),
            *(("application/x-python-serialize", ("content-type",)), ("application/data", ("content-type",))),
            *(("rot13", ("content-encoding",)), ("", ("body",)), ("W10=", ("body",)), ("bnVsbA==", ("body",))),
            *(([], ("headers", "task")), ({}, ("headers", "id")), ("rot13", ("properties", "body_encoding"))),
            *(
                (None, ("properties", "delivery_tag")),
                ("x", ("properties", "priority")),
                (5, ("properties", "reply_to")),
            ),
        )
    },
    **{
        f"header {name} {value!r:.30}": with_header(**{name: value})
        for name, value in (
            *(("eta", "2099-01-01T00:00:00+00:00"), ("eta", 5), ("eta", "x"), ("expires", "x"), ("expires", 5)),
            *(
                ("expires", "0001-01-01T00:00:00+14:00"),
                ("expires", "9999-12-31T23:59:59-14:00"),
                ("retries", "x"),
            ),
            *(
                ("retries", 10**9),
                ("timelimit", [0.001, 0.001]),
                ("timelimit", "x"),
                ("compression", "application/x-gzip"),
            ),
            *(("task", "trainwire.unknown"), ("task", "celery.backend_cleanup"), ("root_id", []), ("group", "x")),
            *(("shadow", "x"), ("stamped_headers", ["x"]), ("ignore_result", "x"), ("odd", 1), ("callbacks", [])),
        )
    },
    **{
        f"arguments {args!r:.30}": json.dumps(order(args=args)).encode()
        for args in (
            *((), ("logs",), ("logs", -1), ("logs", "1"), ("logs", 1.5), ("logs", 2**63), ("odd", 1), (1, "logs")),
            *(("logs", 1, 2), "logs", None, {"kind": "logs"}, ("logs", None), ("logs", True), (["logs"], 1)),
        )
    },
    "keywords": json.dumps(order(kwargs={"kind": "logs", "shard": 1})).encode(),
    **{
        f"embedded {name}": json.dumps(order(embedded={name: [{"task": SWEEP_TASK}]})).encode()
        for name in ("callbacks", "errbacks", "chain", "chord")
    },
    "notify in ingest": json.dumps(order(NOTIFY_TASK, ('[{"event":"training_complete","job_id":1}]',))).encode(),
    "echo in ingest": json.dumps(order(ECHO_TASK, ("forged",))).encode(),
    "deliver in ingest": json.dumps(order(DELIVER_TASK, ("loki",))).encode(),
    "sweep in ingest": json.dumps(order(SWEEP_TASK, ())).encode(),
}


@pytest.fixture
def working(resources: Resources, tmp_path: Path) -> Iterator[tuple[Resources, Process]]:
    """A worker, and beat."""
    with workers_running(resources.settings, tmp_path) as (worker,):
        yield resources, worker


def are_taken(resources: Resources, queue: str) -> bool:
    """Return whether a queue is empty."""
    return not resources.redis.llen(queue)


def goes_on(resources: Resources, job: int) -> bool:
    """Return whether a new line of a job is stored."""
    with resources.engine.connect() as connection:
        found = text("SELECT count(*) FROM training_logs WHERE job_id = :job")
        return bool(connection.execute(found, {"job": job}).scalar_one())


def test_wrong_orders_are_dropped_in_every_queue(working: tuple[Resources, Process]) -> None:
    """Any message is removed from a queue without an exit or reconnect of the worker, and drains continue."""
    resources, worker = working
    listener = resources.redis.pubsub()  # type: ignore[no-untyped-call]
    listener.subscribe(events_channel(1))
    pid = worker.process.pid
    for job, (name, raw) in enumerate(WRONG.items(), start=100):
        resources.redis.lpush(INGEST_QUEUE, raw)
        if job % 20 == 0:
            wait_until(partial(are_taken, resources, INGEST_QUEUE), f"the drop of {name}")
    for queue in QUEUES:
        resources.redis.lpush(queue, "x", "[]", "{}", json.dumps(order(task="trainwire.unknown")))
    wait_until(lambda: all(are_taken(resources, queue) for queue in QUEUES), "the drops")
    Sender(resources.redis).send(logs("still here"), job=7)
    wait_until(partial(goes_on, resources, 7), "the line")
    assert (worker.process.poll(), worker.process.pid) == (None, pid)
    assert "order.dropped" in worker.output
    assert "Traceback" not in worker.output
    assert "Connection to broker lost" not in worker.output
    with resources.engine.connect() as connection:
        streams = connection.execute(text("SELECT stream FROM ingest_cursors")).scalars().all()
    assert set(streams) == {"ingest:{3}:logs"}
    assert not resources.redis.exists(echo_key("forged"))
    assert not [
        message
        for message in iter(partial(listener.get_message, timeout=0.1), None)
        if message["type"] == "message"
    ]


def test_a_wrong_order_is_logged_with_its_sender(working: tuple[Resources, Process]) -> None:
    """The log has the queue, the reason, the task and the process that sent it."""
    resources, worker = working
    resources.redis.lpush(INGEST_QUEUE, json.dumps(order(NOTIFY_TASK, ("[]",))))
    wait_until(lambda: "order.dropped" in worker.output, "the log line")
    (line,) = [line for line in worker.output.splitlines() if "order.dropped" in line]
    assert "gen9@badhost" in line
    assert f"the task '{NOTIFY_TASK}' does not belong into the queue {INGEST_QUEUE}" in line


def test_twenty_thousand_orders_for_2099_hold_nothing_up(working: tuple[Resources, Process]) -> None:
    """Orders with a future ETA are dropped when read: none stays in memory, and new messages are stored."""
    resources, worker = working
    raw = with_header(eta="2099-01-01T00:00:00+00:00")
    pipeline = resources.redis.pipeline(transaction=False)
    for _ in range(20_000):
        pipeline.lpush(INGEST_QUEUE, raw)
    pipeline.execute()
    wait_until(partial(are_taken, resources, INGEST_QUEUE), "the drops", 240)
    Sender(resources.redis).send(logs("soon"), job=8)
    wait_until(partial(goes_on, resources, 8), "the line")
    assert resources.redis.hlen("unacked") < 20
    assert worker.output.count("order.dropped") < 500


def test_a_wrong_message_of_remote_control_is_dropped(working: tuple[Resources, Process]) -> None:
    """An invalid message of remote control, on pub/sub, does not end the worker either."""
    resources, worker = working
    for wrong in ("x", "[]", "{}", json.dumps(order()), json.dumps(order(args="x"))):
        resources.redis.publish("/0.celery.pidbox", wrong)
    Sender(resources.redis).send(logs("still here"), job=9)
    wait_until(partial(goes_on, resources, 9), "the line")
    assert worker.process.poll() is None


def test_orders_of_our_own_pass(working: tuple[Resources, Process]) -> None:
    """Orders of beat and of drains are accepted, and so is an operator's order without an expiry."""
    resources, worker = working
    resources.redis.lpush(BEAT_QUEUE, json.dumps(order(SWEEP_TASK, ())))
    resources.redis.lpush(NOTIFY_QUEUE, json.dumps(order(NOTIFY_TASK, ("[]",))))
    soon = datetime.fromtimestamp(time.time() + 600, UTC).isoformat()
    resources.redis.lpush(INGEST_QUEUE, with_header(expires=soon))
    Sender(resources.redis).send(logs("a"), job=10)
    wait_until(partial(goes_on, resources, 10), "the line")
    wait_until(lambda: all(are_taken(resources, queue) for queue in QUEUES), "the orders")
    assert "order.dropped" not in worker.output


FAULTY = """
import sys
from trainwire.workers.orders import broker_transport
from trainwire.workers.__main__ import main

def check_order(raw, queue):
    raise RuntimeError("a fault")

broker_transport.check_order = check_order
sys.exit(main(["worker", "--name", "faulty"]))
"""


def test_a_worker_that_ends_by_a_fault_ends_non_zero(resources: Resources, tmp_path: Path) -> None:
    """After an exception in its event loop a worker exits with 1, after SIGTERM with 0."""
    address = {
        "REDIS_URL": resources.settings.redis_url.get_secret_value(),
        "DATABASE_URL": resources.settings.database_url.get_secret_value(),
    }
    command = [sys.executable, "-W", "ignore", "-c", FAULTY]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | address, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 1
    assert "a fault" in done.stderr + done.stdout
    healthy = Process(resources.settings, tmp_path / "healthy.log", "worker", "--name", "healthy")
    try:
        wait_until(healthy.start().is_ready, "the worker's start", START_TIMEOUT_S)
        healthy.process.terminate()
        assert healthy.process.wait(60) == 0
    finally:
        healthy.stop()
