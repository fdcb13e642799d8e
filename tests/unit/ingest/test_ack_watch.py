"""Resends: of which messages, and when."""

from __future__ import annotations

from trainwire.ingest.sending.acks import AckReport, AckWatch, parse_report
from trainwire.ingest.settings.setting_groups import Timing


def test_reports_are_read_leniently() -> None:
    """Absent or malformed fields count as not reported."""
    assert parse_report(None, None) == AckReport()
    assert parse_report(b"7", b"3-5,9-9") == AckReport(7, ((3, 5), (9, 9)))
    assert parse_report(b"x", b"3-,a-b,8") == AckReport()


def test_missing_ranges_are_asked_for_at_growing_intervals() -> None:
    """The same gap is repaired at once, then after 2 s, 4 s, 8 s."""
    watch = AckWatch(Timing(), now=0.0)
    report = AckReport(2, ((3, 5),))
    times = [now / 2 for now in range(60) if watch.overdue(report, 9, now / 2)]
    assert times == [0, 2, 6, 14]


def test_workers_that_get_on_are_not_flooded() -> None:
    """While the reported gap shrinks, nothing is sent a second time."""
    watch = AckWatch(Timing(), now=0.0)
    assert watch.overdue(AckReport(0, ((1, 99),)), 100, 0.0) == ((1, 99),)
    for step in range(1, 50):
        assert not watch.overdue(AckReport(step, ((step + 1, 99),)), 100, float(step))


def test_silence_is_probed_with_the_last_message() -> None:
    """After 5 s without news the last message alone is sent again, then 10 s, 20 s ... 120 s later."""
    watch = AckWatch(Timing(), now=0.0)
    asked = {now: watch.overdue(AckReport(1), 4, float(now)) for now in range(400)}
    assert [now for now, ranges in asked.items() if ranges] == [5, 15, 35, 75, 155, 275, 395]
    assert asked[5] == ((4, 4),)


def test_a_busy_sender_needs_no_probe() -> None:
    """As long as new messages are sent, they show a gap by themselves."""
    watch = AckWatch(Timing(), now=0.0)
    assert not any(watch.overdue(AckReport(), awaited, float(awaited)) for awaited in range(1, 100))


def test_acks_that_go_back_are_probed_at_once() -> None:
    """After a restore of Postgres a resend of the newest message shows the gap, even while more is sent."""
    watch = AckWatch(Timing(), now=0.0)
    assert not watch.overdue(AckReport(90), None, 1.0)
    assert watch.overdue(AckReport(40), 91, 2.0, stepped_back=True) == ((91, 91),)
    assert not watch.overdue(AckReport(40), 91, 3.0)
    assert watch.overdue(AckReport(40, ((41, 90),)), 91, 4.0) == ((41, 90),)


def test_nothing_is_sent_when_nothing_is_awaited() -> None:
    """A run whose messages are all acked is silent."""
    watch = AckWatch(Timing(), now=0.0)
    assert not any(watch.overdue(AckReport(3), None, float(now)) for now in range(500))
