"""The line that says how far an upload is."""

from __future__ import annotations

import io

import pytest

from trainwire.ingest.uploads.progress_bar import ProgressBar


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        """Tell so."""
        return True


def test_a_terminal_shows_the_share_and_is_left_clean() -> None:
    """The line is drawn over itself and wiped at the end."""
    terminal = Terminal()
    bar = ProgressBar("last.pt", 400_000_000, terminal)
    bar.advance(100_000_000)
    assert terminal.getvalue().endswith("last.pt [######..................]  25% of 400 MB")
    bar.clear()
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_elsewhere_nothing_is_written() -> None:
    """A file or a pipe, such as the launcher's, sees no bar; nor does a terminal that is closed."""
    log = io.StringIO()
    bar = ProgressBar("last.pt", 10, log)
    bar.advance(10)
    bar.clear()
    assert not log.getvalue()
    gone = Terminal()
    gone.close()
    ProgressBar("last.pt", 10, gone).advance(5)


def test_the_captured_stderr_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar goes past sys.stderr, whose lines are logged where a run captures output."""
    real, captured = Terminal(), Terminal()
    monkeypatch.setattr("sys.__stderr__", real)
    monkeypatch.setattr("sys.stderr", captured)
    ProgressBar("last.pt", 10).advance(5)
    assert "last.pt" in real.getvalue()
    assert not captured.getvalue()
