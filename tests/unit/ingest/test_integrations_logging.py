"""Records of Python's `logging` as log lines of a run."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from trainwire import Run, TrainerSettings
from trainwire.ingest.settings.setting_groups import SpoolSettings
from trainwire.integrations.logging import RunHandler
from trainwire.testing import RecordedRun

Log = Callable[[Run], logging.Logger]


@pytest.fixture
def log_to() -> Log:
    """Give a maker of loggers that end in a run alone."""

    def make(run: Run) -> logging.Logger:
        logger = logging.Logger("somebodys.training")
        logger.addHandler(RunHandler(run))
        return logger

    return make


def test_a_record_is_a_line_with_its_level(log_to: Log) -> None:
    """The arguments are filled in, the level is the record's, the logger is named, and the stream is stderr."""
    run = RecordedRun()
    log_to(run).warning("loss is %.1f", 0.5)
    line = run.assert_logged("somebodys.training: loss is 0.5", level="WARNING")
    assert line.log_type == "stderr"


def test_an_exception_has_its_traceback(log_to: Log) -> None:
    """Each line of a traceback is a line at the record's level."""
    run = RecordedRun()
    logger = log_to(run)
    try:
        os.environ["NO_SUCH_WEIGHTS"]
    except KeyError:
        logger.exception("no checkpoint")
    assert [line.text for line in run.lines][:2] == [
        "somebodys.training: no checkpoint",
        "Traceback (most recent call last):",
    ]
    assert run.lines[-1].text == "KeyError: 'NO_SUCH_WEIGHTS'"
    assert {line.level for line in run.lines} == {"ERROR"}


def test_the_handlers_level_and_filters_count(log_to: Log) -> None:
    """Records below the level of the handler, or stopped by a filter, are not logged."""
    run = RecordedRun()
    logger = log_to(run)
    (handler,) = logger.handlers
    handler.setLevel("INFO")
    handler.addFilter(lambda record: "secret" not in record.getMessage())
    for text in ("fine", "a secret"):
        logger.info(text)
    logger.debug("too low")
    assert run.text == "somebodys.training: fine"


def test_what_cannot_be_formatted_raises_nothing(log_to: Log, capsys: pytest.CaptureFixture[str]) -> None:
    """A record whose arguments do not fit is shown on stderr, and the next one is taken."""
    run = RecordedRun()
    logger = log_to(run)
    logger.info("%d epochs", "many")
    logger.info("next")
    assert run.text == "somebodys.training: next"
    assert "Logging error" in capsys.readouterr().err


def test_our_own_warnings_do_not_come_back(caplog: pytest.LogCaptureFixture) -> None:
    """Warnings of a run are not logged to the same run by a handler of their logger."""
    run = RecordedRun()
    root, handler = logging.getLogger(), RunHandler(run)
    root.addHandler(handler)
    try:
        run.metric(loss="high")  # type: ignore[arg-type]
        root.warning("said before the end")
        receipt = run.finish(timeout_s=0)
        root.warning("said after it")
    finally:
        root.removeHandler(handler)
    assert run.text == "root: said before the end"
    assert receipt.dropped == {"values": 1}
    ours = [record.getMessage() for record in caplog.records if record.name == "trainwire.ingest"]
    assert [text.partition(";")[0] for text in ours] == [
        "job 1: metric 'loss'='high' (str) is not a number: left out",
        "job 1: the run is finished: later calls are left out",
    ]


def test_what_is_said_on_our_threads_is_left_out(log_to: Log) -> None:
    """A library that logs while it sends for us would make more to send."""
    run = RecordedRun()
    logger = log_to(run)
    for name in ("trainwire-sender", "worker"):
        thread = threading.Thread(target=logger.info, args=(f"from {name}",), name=name)
        thread.start()
        thread.join()
    assert run.text == "somebodys.training: from worker"


def test_a_thread_that_waits_for_room_holds_up_nobody_elses_record(log_to: Log) -> None:
    """While one thread waits in a full run (`block`), other threads that log to it get past the handler."""
    entered, leave = threading.Event(), threading.Event()

    class Waiting(RecordedRun):
        def log(self, text: object, **named: Any) -> None:
            if threading.current_thread().name == "blocked":
                entered.set()
                leave.wait(30)
            super().log(text, **named)

    run = Waiting()
    logger = log_to(run)
    blocked = threading.Thread(target=logger.info, args=("first",), name="blocked")
    blocked.start()
    assert entered.wait(30)
    other = threading.Thread(target=logger.info, args=("second",))
    other.start()
    other.join(10)
    assert not other.is_alive()
    leave.set()
    blocked.join(10)
    assert [line.text[-6:] for line in run.lines] == ["second", " first"]


def test_nothing_is_left_in_the_handler(log_to: Log) -> None:
    """A record is in the run before any flush, and flushing and closing lose nothing."""
    run = RecordedRun()
    logger = log_to(run)
    logger.info("said")
    before = run.text
    for handler in logger.handlers:
        handler.flush()
        handler.close()
    assert before == run.text == "somebodys.training: said"


@pytest.mark.filterwarnings("ignore:.*fork")  # newer Pythons advise against it with threads
def test_a_forked_child_logs_for_itself(log_to: Log) -> None:
    """A child forked while another thread logs does not hang, and logs as a source of its own."""
    run = RecordedRun()
    logger = log_to(run)
    stop = threading.Event()

    def chatter() -> None:
        while not stop.is_set():
            logger.info("parent")

    thread = threading.Thread(target=chatter)
    thread.start()
    reading, writing = os.pipe()
    parents_source = run.source
    child = os.fork()
    if child == 0:
        logger.info("child")
        os.write(writing, f"{run.text}|{run.source != parents_source}".encode())
        os._exit(0)
    stop.set()
    thread.join()
    os.waitpid(child, 0)
    assert os.read(reading, 1000) == b"somebodys.training: child|True"
    assert "child" not in run.text


def test_a_real_run_takes_records(log_to: Log, read_bodies: Callable[..., list[Any]]) -> None:
    """With a run that sends, the lines are in its outbox."""
    run = Run(1, settings=TrainerSettings(redis_url="redis://127.0.0.1:1/0", spool=SpoolSettings()))
    log_to(run).error("real")
    (body,) = read_bodies(run._session.outbox, "logs")
    assert (body.lines, body.levels) == (["somebodys.training: real"], ["ERROR"])
    run.finish(timeout_s=0)
