"""The intervals at which `trainwire up` sends a leftover that no worker stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainwire.ingest.receipt import Receipt
from trainwire.ingest.sending.recovery import Leftover
from trainwire.ingest.spool.folder import About
from trainwire.stack.spool_watch import LONGEST_PAUSE_S, SpoolWatch

PATH = Path("/spool/1-0-test")
ABOUT = About(1, 1, "0-test", None, "redis:6379/0")


def test_unstored_messages_are_resent_with_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """After 10 s, 20 s, 40 s ... up to ten minutes; messages that Redis did not accept are due at once."""
    now = 1000.0
    monkeypatch.setattr("trainwire.stack.spool_watch.time.monotonic", lambda: now)
    watch = SpoolWatch(PATH.parent, "redis://127.0.0.1:1/0", print)
    pauses = []
    for _ in range(9):
        watch._note(Leftover(ABOUT, Receipt(produced={"logs": 2}, unsent={"logs": 0}), PATH))
        began = now
        assert watch._is_due(PATH.with_name("another"))
        while not watch._is_due(PATH):
            now += 1
        pauses.append(now - began)
    assert pauses[:3] == [10, 20, 40]
    assert pauses[-1] == LONGEST_PAUSE_S
    watch._note(Leftover(ABOUT, Receipt(produced={"logs": 2}, unsent={"logs": 1}), PATH))
    assert watch._is_due(PATH)
