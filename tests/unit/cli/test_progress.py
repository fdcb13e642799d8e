"""The progress of imports and exports: lines where stderr is no terminal, a bar where it is one."""

from __future__ import annotations

import io
import sys

import pytest

from trainwire.cli.transfer.progress import Progress, progress_text


class Clock:
    """A clock that stands still between calls of `advance`."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    """Give a clock."""
    return Clock()


def test_a_line_comes_every_ten_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """It has points, percentage, rate and remaining time; nothing is printed in between."""
    with Progress(quiet=False, clock=clock) as progress:
        for second in range(31):
            clock.now_s = 100.0 + second
            progress.update("digits", 50_000 * second, lambda: clock.now_s / 100 - 1)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "trainwire: digits: 500,000 points, 10%, 50,000/s, 1 min 30 s left",
        "trainwire: digits: 1,000,000 points, 20%, 50,000/s, 1 min 20 s left",
        "trainwire: digits: 1,500,000 points, 30%, 50,000/s, 1 min 10 s left",
    ]


def test_without_a_known_total_there_are_counts() -> None:
    """Neither a percentage nor a remaining time is guessed; control characters of names are not printed."""
    assert progress_text("a\x1b[2Jb\n", 1200, None, 1000, 2.0) == "ab: 1,200 points, 500/s"
    assert progress_text("a", 0, 0.0, 0, 0.0) == "a: 0 points, 0%"
    assert progress_text("a", 10, 0.001, 10, 10.0).endswith("2 h 46 min left")


def test_quiet_prints_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """With --quiet there is no line however long it takes."""
    with Progress(quiet=True, clock=clock) as progress:
        clock.now_s += 1000
        progress.update("digits", 1, 0.5)
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar_that_goes_away(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar is drawn with the text of the run, and cleared at the end."""
    stderr = _Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    with Progress(quiet=False, clock=clock) as progress:
        progress.update("digits", 0, 0.0)
        clock.now_s += 1
        progress.update("digits", 50_000, 0.5)
    assert "digits: 50,000 points, 50%, 50,000/s, 1 s left" in stderr.getvalue()
    assert stderr.getvalue().rstrip("\n").endswith("\x1b[2K")


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True
