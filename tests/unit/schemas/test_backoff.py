"""The backoff that trainers, workers, gateway and stack share."""

from __future__ import annotations

from trainwire.schemas.backoff import Backoff


def test_waits_double_up_to_the_cap() -> None:
    """Waits double up to a cap, and retries never end."""
    backoff = Backoff(first_s=0.2, cap_s=10)
    waits = [backoff.delay_s(failures, lambda: 1.0) for failures in range(1, 100)]
    assert waits[:3] == [0.2, 0.4, 0.8]
    assert waits == sorted(waits)
    assert waits[-1] == 10
    assert backoff.delay_s(10**6, lambda: 0.0) == 5


def test_two_processes_do_not_wait_alike() -> None:
    """Jitter shortens a wait by up to half."""
    waits = {Backoff().delay_s(3) for _ in range(20)}
    assert len(waits) > 1
    assert all(2 <= wait_s <= 4 for wait_s in waits)
