"""Streams of Python's own as log lines, where they have no descriptor: pytest replaces them, as notebooks do."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable
from typing import Any

import pytest

from trainwire import TrainerSettings
from trainwire.ingest.output.tee import Tee


def test_output_is_shown_and_taken(tell: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed is still shown, and both streams become lines; the unfinished last one too."""
    told = tell()
    with told.run.capture_output():
        print("hello")
        sys.stderr.write("oops\n")
        print("tail", end="")
    print("not taken")
    assert sorted((body.log_type, body.lines) for body in told.bodies("logs")) == [
        ("stderr", ["oops"]),
        ("stdout", ["hello"]),
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
    levels = [level for body in told.bodies("logs") for level in body.levels or [None] * len(body.lines)]
    assert levels == ["INFO", None, "DEBUG", None]


def test_a_handler_that_was_made_before_is_captured(tell: Callable[..., Any]) -> None:
    """The stream stays the same object, so whoever holds it from before the capture is captured too."""
    told = tell()
    handler = logging.StreamHandler(sys.stderr)
    with told.run.capture_output():
        handler.handle(logging.LogRecord("train", logging.INFO, "", 0, "made before", None, None))
    handler.handle(logging.LogRecord("train", logging.INFO, "", 0, "after the end", None, None))
    assert told.lines() == ["made before"]


def test_finish_restores_the_streams(tell: Callable[..., Any]) -> None:
    """After the run the process has its own streams again, with their own methods."""
    before = sys.stdout, sys.stderr, sys.stdout.write
    told = tell()
    told.run.capture_output()
    assert sys.stdout.write != before[2]
    told.run.finish(timeout_s=0)
    assert (sys.stdout, sys.stderr, sys.stdout.write) == before


def test_under_the_launcher_nothing_is_taken_twice(tell: Callable[..., Any]) -> None:
    """Where the launcher captures for this job, capture_output does nothing; another job's output is its own."""
    settings = TrainerSettings(redis_url="redis://127.0.0.1:1/0", is_captured=True, job_id=42)
    same, other = tell(settings=settings), tell(job_id=43, settings=settings)
    with same.run.capture_output(), other.run.capture_output():
        print("hello")
    assert same.lines() == []
    assert other.lines() == ["hello"]


def test_a_taker_that_prints_does_not_recurse(capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed while a line is being taken is shown and not taken."""
    taken: list[str] = []

    def take(lines: Any, _log_type: Any, _ts: int) -> None:
        taken.extend(lines)
        print("from within")

    tee = Tee("stdout", take)
    print("hello")
    tee.stop()
    assert taken == ["hello"]
    assert capsys.readouterr().out == "hello\nfrom within\n"


def test_a_stream_that_cannot_be_changed_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """An object with slots takes no new method: another stream stands in sys until the end."""

    class Slotted:
        __slots__ = ("text",)

        def __init__(self) -> None:
            self.text = io.StringIO()

        def write(self, text: str) -> int:
            return self.text.write(text)

    stream, taken = Slotted(), list[str]()
    monkeypatch.setattr(sys, "stdout", stream)
    tee = Tee("stdout", lambda lines, _log_type, _ts: taken.extend(lines))
    print("hello")
    assert vars(sys)["stdout"] is tee
    tee.stop()
    assert vars(sys)["stdout"] is stream
    assert (taken, stream.text.getvalue()) == (["hello"], "hello\n")


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
    assert any("metric 'loss'='high' (str) is not a number" in line for line in told.lines())
