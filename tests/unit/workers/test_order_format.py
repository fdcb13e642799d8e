"""Work orders in the queues of workers."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest

from trainwire.workers.orders.order_format import check_order
from trainwire.workers.schedule import SCHEDULE


@pytest.mark.parametrize("name", SCHEDULE)
def test_workers_take_every_order_of_beat(name: str) -> None:
    """Every task that beat orders is accepted by the workers of its queue."""
    tick: dict[str, Any] = SCHEDULE[name]
    queue = tick["options"]["queue"]
    message = {
        "body": base64.b64encode(msgspec.json.encode([[], {}, {}])).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"task": tick["task"], "id": "1"},
        "properties": {
            "delivery_tag": "1",
            "body_encoding": "base64",
            "delivery_info": {"exchange": "", "routing_key": queue},
        },
    }
    check_order(msgspec.json.encode(message), queue)
