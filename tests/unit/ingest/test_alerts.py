"""`run.alert`: what it sends, and how it treats wrong arguments."""

from __future__ import annotations

import logging

import pytest

from trainwire.schemas.wire.limits import MAX_ALERT_TEXT_CHARS, MAX_ALERT_TITLE_CHARS
from trainwire.testing import RecordedRun


def test_an_alert_is_sent_and_logged() -> None:
    """Title, text and level travel with the metrics; the log has a line at the same time."""
    run = RecordedRun(1)
    run.alert("Loss spikes", "at step 7", level="warning")
    run.alert("Done")
    first, second = run.alerts
    assert (first.title, first.text, first.level) == ("Loss spikes", "at step 7", "warning")
    assert (second.title, second.text, second.level) == ("Done", "", "info")
    line = run.assert_logged("ALERT: Loss spikes: at step 7", level="WARNING")
    assert line.ts == first.ts


def test_an_alert_fits_its_limits() -> None:
    """A title is one line; long texts are cut."""
    run = RecordedRun(1)
    run.alert("a\nb" + "c" * 1000, "d" * 100_000)
    (alert,) = run.alerts
    assert alert.title.startswith("a bc")
    assert (len(alert.title), len(alert.text)) == (MAX_ALERT_TITLE_CHARS, MAX_ALERT_TEXT_CHARS)


def test_wrong_arguments_do_not_raise(caplog: pytest.LogCaptureFixture) -> None:
    """An unknown level is an error's, with one warning; an exception as the text is sent by its message."""
    run = RecordedRun(1)
    with caplog.at_level(logging.WARNING, "trainwire.ingest"):
        run.alert("title", ValueError("bad"), level="urgent")
        run.alert("title", level="WARN")
        run.alert("", level="critical")
    assert [alert.level for alert in run.alerts] == ["error", "warning", "error"]
    assert "bad" in run.alerts[0].text
    assert run.alerts[2].title == "Alert"
    assert (
        "level='urgent' (str) is not a level: taken as 'error'; write 'info', 'warning' or 'error'" in caplog.text
    )
