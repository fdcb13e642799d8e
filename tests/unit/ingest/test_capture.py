"""A process's own output as log lines."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

import pytest

from ingest import TrainerSettings
from ingest.capture import Tee


def test_output_is_shown_and_taken(tell: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed is still shown, and both streams become lines; the unfinished last one too."""
    told = tell()
    with told.run.capture_output():
        print("hello")
        sys.stderr.write("oops\n")
        print("tail", end="")
    print("not taken")
    assert [(body.log_type, body.lines) for body in told.bodies("logs")] == [
        ("stdout", ["hello"]),
        ("stderr", ["oops"]),
        ("stdout", ["tail"]),
    ]
    assert capsys.readouterr() == ("hello\ntailnot taken\n", "oops\n")


def test_printed_levels_are_read(tell: Callable[..., Any]) -> None:
    """What a logging library prints has its level; what is logged with one keeps it, whatever the text says."""
    told = tell()
    with told.run.capture_output():
        print("INFO:root:hello\nplain")
    told.run.log("INFO:root:hello", level="DEBUG")
    told.run.log("INFO:root:hello")
    (body,) = told.bodies("logs")
    assert body.levels == ["INFO", None, "DEBUG", None]


def test_finish_restores_the_streams(tell: Callable[..., Any]) -> None:
    """After the run the process has its own streams again."""
    before = sys.stdout, sys.stderr
    told = tell()
    told.run.capture_output()
    assert isinstance(sys.stdout, Tee)
    assert sys.stdout.encoding == before[0].encoding
    told.run.finish(timeout_s=0)
    assert (sys.stdout, sys.stderr) == before


def test_under_the_launcher_nothing_is_taken_twice(tell: Callable[..., Any]) -> None:
    """Where the launcher captures, capture_output leaves the streams alone."""
    settings = TrainerSettings(redis_url="redis://127.0.0.1:1/0", is_captured=True)
    before = sys.stdout
    with tell(settings=settings).run.capture_output():
        assert sys.stdout is before


def test_a_taker_that_prints_does_not_recurse(capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed while a line is being taken is shown and not taken."""
    taken: list[str] = []

    def take(lines: Any, _log_type: Any, _ts: int) -> None:
        taken.extend(lines)
        tee.write("from within\n")

    tee = Tee(sys.stdout, "stdout", take)
    tee.write("hello\n")
    assert taken == ["hello"]
    assert capsys.readouterr().out == "hello\nfrom within\n"


def test_our_own_warnings_do_not_recurse(tell: Callable[..., Any]) -> None:
    """A warning of ours that goes to the captured stderr is a line like any other."""
    told = tell()
    logger = logging.getLogger("trainwire.ingest")
    with told.run.capture_output():
        handler = logging.StreamHandler()
        logger.addHandler(handler)
        try:
            told.run.metric(loss="high")
        finally:
            logger.removeHandler(handler)
    assert any("metric 'loss' is str, not a number" in line for line in told.lines())
