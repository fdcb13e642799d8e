"""How long the messages of busy streams collect before the next drain."""

from __future__ import annotations

import pytest

from trainwire.workers.streams.linger import (
    ENOUGH_ENTRIES,
    FULL_SHARE,
    LEAST_SHARE,
    MOST_LINGER_S,
    DrainShare,
    linger_s,
)


class Clock:
    """A clock that stands still until it is set."""

    now = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def test_a_quiet_process_lets_nothing_wait() -> None:
    """Up to a fifth of its time in drains, messages are stored at once."""
    assert linger_s(0.0, 1) == linger_s(LEAST_SHARE, 1) == 0


def test_the_linger_grows_with_the_share() -> None:
    """It grows steadily to its maximum, and is never longer."""
    waits = [linger_s(LEAST_SHARE + (FULL_SHARE - LEAST_SHARE) * part / 10, 1) for part in range(11)]
    assert waits == sorted(waits)
    assert waits[5] == pytest.approx(MOST_LINGER_S / 2)
    assert waits[-1] == linger_s(1.0, 1) == MOST_LINGER_S


def test_large_transactions_follow_at_once() -> None:
    """A transaction with many entries is not made larger by waiting."""
    assert linger_s(1.0, ENOUGH_ENTRIES) == 0 < linger_s(1.0, ENOUGH_ENTRIES - 1)


def test_the_share_is_that_of_the_last_second() -> None:
    """A drain of 10 ms in each 40 ms is a quarter of the time; a single one after a pause counts little."""
    clock = Clock()
    share = DrainShare(clock)
    for _ in range(200):
        share.begin()
        clock.now += 0.01
        share.end()
        clock.now += 0.03
    assert share.share() == pytest.approx(0.25, abs=0.02)
    clock.now += 5
    share.begin()
    clock.now += 0.01
    assert share.share() == pytest.approx(0.01, abs=0.005)
    share.end()
