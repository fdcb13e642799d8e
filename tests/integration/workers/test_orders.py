"""Work orders in the queues: one per stream, and all of our own pass the workers' check."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.certify.failpoints import Failpoints, Failure, install
from tests.processes import in_child
from trainwire.schemas.keys import (
    BEAT_QUEUE,
    CHECKPOINT_QUEUE,
    DELIVER_TASK,
    INGEST_QUEUE,
    NOTIFY_QUEUE,
    NOTIFY_TASK,
    ordered_key,
    stream_key,
)
from trainwire.schemas.sinks import SINKS
from trainwire.stores.postgres.connections import open_redis
from trainwire.workers.errors import Unavailable
from trainwire.workers.orders.order_format import WrongOrder, check_order
from trainwire.workers.resources import Resources
from trainwire.workers.schedule import SCHEDULE

DRAINS = ordered_key(stream_key("logs", 1))
ORDERS = 12


@pytest.fixture(autouse=True)
def _environment(resources: Resources, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Celery application reads the environment when it is imported."""
    monkeypatch.setenv("REDIS_URL", resources.settings.redis_url.get_secret_value())
    monkeypatch.setenv("DATABASE_URL", resources.settings.database_url.get_secret_value())


def test_a_drain_is_ordered_once(resources: Resources) -> None:
    """While a drain is ordered or running no other is ordered, except by that drain for the rest."""
    from trainwire.workers.orders.order_sender import order_drain  # noqa: PLC0415 - see the fixture

    first, *others = [order_drain(resources, "logs", 1) for _ in range(3)]
    assert first == 0
    assert all(0 < ordered_s <= 1 for ordered_s in others)
    assert order_drain(resources, "logs", 2) == 0
    assert 0 < resources.redis.pttl(DRAINS) <= 1000
    assert order_drain(resources, "logs", 1, is_rest=True) == 0
    queue = resources.redis.lrange(INGEST_QUEUE, 0, -1)
    assert len(queue) == 3
    for raw in queue:
        assert isinstance(raw, bytes)
        check_order(raw, INGEST_QUEUE)


def test_orders_of_a_killed_worker_are_sent_again(resources: Resources) -> None:
    """A starting worker does not wait until the keys of orders expire that a killed one has taken."""
    from trainwire.workers.orders.order_sender import (  # noqa: PLC0415 - see the fixture
        order_anew,
        order_delivery,
        order_drain,
        order_verification,
    )

    def order_all() -> None:
        order_drain(resources, "logs", 1)
        order_delivery(resources, "loki")
        order_verification(resources)

    queues = [INGEST_QUEUE, SINKS["loki"].queue, CHECKPOINT_QUEUE]
    order_all()
    resources.redis.delete(*queues)  # a worker takes them and is killed
    order_all()
    assert [resources.redis.llen(queue) for queue in queues] == [0, 0, 0]
    order_anew(resources, queues[1:])
    assert order_drain(resources, "logs", 1) > 0  # another worker has that queue
    order_anew(resources, queues)
    assert [resources.redis.llen(queue) for queue in queues[1:]] == [2, 2]
    assert order_drain(resources, "logs", 1) == 0  # as the stream watch does at its start


def test_no_pile_of_orders_is_made(resources: Resources) -> None:
    """While workers are busy, each stream has at most two waiting orders."""
    from trainwire.workers.orders.order_sender import order_drain  # noqa: PLC0415 - see the fixture

    for _ in range(500):
        resources.redis.delete(DRAINS)
        order_drain(resources, "logs", 1)
    assert resources.redis.llen(INGEST_QUEUE) == 32


def test_waiting_orders_are_noticed(resources: Resources) -> None:
    """A drain learns that orders of other drains or of beat wait; those of deliveries do not count."""
    from trainwire.workers.orders.order_sender import has_waiting_orders, order_drain  # noqa: PLC0415 - as above

    resources.redis.lpush("deliver", "order")
    assert not has_waiting_orders(resources)
    order_drain(resources, "logs", 1)
    assert has_waiting_orders(resources)
    resources.redis.delete(INGEST_QUEUE)
    resources.redis.lpush(BEAT_QUEUE, "order")
    assert has_waiting_orders(resources)


@pytest.mark.parametrize(
    ("task", "args", "queue"),
    [
        *((entry["task"], [], entry["options"]["queue"]) for entry in SCHEDULE.values()),
        (DELIVER_TASK, ["loki"], "deliver"),
        (DELIVER_TASK, ["mlflow"], "deliver-mlflow"),
        (NOTIFY_TASK, ["[]"], NOTIFY_QUEUE),
    ],
)
def test_orders_of_our_own_pass(resources: Resources, task: str, args: Sequence[object], queue: str) -> None:
    """An order is taken from its queue, and from no other; Flower shows its text in place of the arguments."""
    from trainwire.workers.orders.order_sender import send_order  # noqa: PLC0415 - see the fixture

    send_order(resources.redis, task, args, queue, "some events")
    raw = resources.redis.lpop(queue)
    assert isinstance(raw, bytes)
    assert b'"argsrepr":"some events"' in raw
    check_order(raw, queue)
    for other in {INGEST_QUEUE, BEAT_QUEUE, NOTIFY_QUEUE, "echo.other"} - {queue}:
        with pytest.raises(WrongOrder):
            check_order(raw, other)


@pytest.mark.parametrize("number", [1, 2, 4, 7])
def test_an_order_is_sent_after_a_command_that_hangs(resources: Resources, tmp_path: Path, number: int) -> None:
    """Whichever command times out, no other error than `Unavailable` is raised, and all other orders arrive."""
    record = tmp_path / "calls.tsv"

    def run() -> None:
        from trainwire.workers.orders.order_sender import send_order  # noqa: PLC0415 - see the fixture

        points = Failpoints(record, Failure("order", number, "hanging", "order_sender.py:send_order"))
        install(points)
        points.role = "order"
        with open_redis(resources.settings) as client:
            for _ in range(ORDERS):
                with suppress(Unavailable):
                    send_order(client, DELIVER_TASK, ["loki"], "deliver")

    assert in_child(run) == 0
    assert "FAILED" in record.read_text()
    assert resources.redis.llen("deliver") >= ORDERS - 1
