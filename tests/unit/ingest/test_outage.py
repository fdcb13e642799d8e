"""Pauses before a trainer tries its server again."""

from __future__ import annotations

import pytest

from trainwire.ingest.servers.outage import REDIS_BACKOFF_CAP_S, Outage, Unavailable
from trainwire.ingest.settings.setting_groups import Timing


@pytest.mark.parametrize(
    ("address", "longest_s"),
    [
        ("redis://127.0.0.1:6379/0", REDIS_BACKOFF_CAP_S),
        ("redis+cluster://a:6379,b:6379", REDIS_BACKOFF_CAP_S),
        ("https://gateway.example", Timing().longest_backoff_s),
        (None, Timing().longest_backoff_s),  # no address is known
    ],
)
def test_pauses_grow_to_the_cap_of_the_server(address: str | None, longest_s: float) -> None:
    """However long an outage lasts, Redis is tried again within a second, and a gateway within five."""
    outage = Outage(Timing())
    pauses_s = [outage.note_failure(Unavailable("away"), address) for _ in range(30)]
    assert pauses_s[0] <= 0.1
    assert all(longest_s / 2 <= pause_s <= longest_s for pause_s in pauses_s[10:])
