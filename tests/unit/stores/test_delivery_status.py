"""Deliveries as text."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from trainwire.cli.formats import shown_clock
from trainwire.stores.postgres.deliveries import JobDelivery, SinkHealth, shown_age, shown_delivery, shown_health

ANSWERS = SinkHealth(sink="loki", answers=True)


def _job(rows_behind: int, **more: object) -> JobDelivery:
    fields: dict[str, object] = {"attempts": 0, "last_error": None, "dead_lettered": 0, **more}
    seqs = {"confirmed_seq": 1234 - rows_behind, "last_seq": 1234}
    return JobDelivery(job_id=42, rows_behind=rows_behind, oldest_age_s=1.0, **seqs, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, ""),
        (0.04, "0.0 s"),
        (59.9, "59.9 s"),
        (61, "1 min 1 s"),
        (3600, "1 h 0 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_ages_are_short(seconds: float | None, shown: str) -> None:
    """An age has at most two units."""
    assert shown_age(seconds) == shown


def test_a_delivery_is_one_line() -> None:
    """A delivery is one line: complete, with dead letters, behind, or behind with a reason."""
    assert shown_delivery(_job(0), ANSWERS, shown_clock) == "all 1,234 lines delivered"
    assert (
        shown_delivery(_job(0, dead_lettered=2), ANSWERS, shown_clock)
        == "all 1,234 lines delivered, 2 of them dead-lettered"
    )
    assert shown_delivery(_job(34), ANSWERS, shown_clock) == "34 lines behind"
    assert shown_delivery(_job(34, last_error="no"), ANSWERS, shown_clock) == "34 lines behind; last error: no"


def test_an_outage_names_its_times() -> None:
    """An outage has its begin, the attempts, the error and the next attempt; one that is due is "now"."""
    now = datetime.now(UTC)
    later = now + timedelta(days=2)
    down = SinkHealth(
        sink="loki",
        answers=False,
        down_since=now,
        next_attempt_at=later,
        attempts=7,
        last_error="Loki answered 503",
    )
    wanted = f"Loki answered 503, since {shown_clock(now)}, next attempt {shown_clock(later)}"
    assert shown_health(down, shown_clock) == f"{wanted} (7 attempts)"
    assert shown_delivery(_job(34), down, shown_clock) == f"34 lines behind; {wanted}"
    due = SinkHealth(sink="loki", answers=False, down_since=now, next_attempt_at=now)
    assert "next attempt now" in shown_health(due, shown_clock)


def test_other_days_have_a_date() -> None:
    """A time of another day is shown with its date."""
    assert len(shown_clock(datetime.now(UTC))) == len("12:03:04")
    assert shown_clock(datetime(2020, 1, 15, 12, tzinfo=UTC)).startswith("2020-01-15 ")
