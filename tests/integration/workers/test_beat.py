"""Beat survives a command to Redis that does not return, and sends its orders afterwards."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
import redis

from tests.certify.failpoints import Failpoints, Failure, install
from tests.processes import in_child
from trainwire.schemas.keys import BEAT_QUEUE
from trainwire.workers.beat import BeatLease, LeasedScheduler
from trainwire.workers.resources import Resources

EVERY_S = 0.02
DEADLINE_S = 120.0
MOST_ORDERS = 10
"""Number of orders after which a command that has not failed yet will not be reached."""


@pytest.mark.parametrize("number", [1, 4, 9, 12, 14])
def test_beat_sends_orders_after_a_command_that_hangs(
    resources: Resources, client: redis.Redis, tmp_path: Path, number: int
) -> None:
    """Whichever command of beat times out, beat goes on, and its orders arrive."""
    url = resources.settings.redis_url.get_secret_value()
    own = {"REDIS_URL": url, "DATABASE_URL": resources.settings.database_url.get_secret_value()}
    calls = tmp_path / "calls.tsv"

    def run() -> None:
        os.environ |= own
        from trainwire.workers.app import app  # noqa: PLC0415 - reads the environment

        points = Failpoints(calls, Failure("beat", number, "hanging"))
        install(points)
        points.role = "beat"
        LeasedScheduler.lease = BeatLease(redis.Redis.from_url(url))
        tick = app.conf.beat_schedule["order-overdue-drains"]
        app.conf.beat_schedule = {"order-overdue-drains": tick | {"schedule": timedelta(seconds=EVERY_S)}}
        scheduler = LeasedScheduler(app)
        with redis.Redis.from_url(url) as queues:
            before, deadline = 0, time.monotonic() + DEADLINE_S
            while (sent := queues.llen(BEAT_QUEUE)) < before + 2:
                assert time.monotonic() < deadline
                before = before if "FAILED" in calls.read_text() or sent > MOST_ORDERS else sent
                time.sleep(max(0.0, min(scheduler.tick(), EVERY_S)))

    assert in_child(run) == 0
    assert client.llen(BEAT_QUEUE) > 0
