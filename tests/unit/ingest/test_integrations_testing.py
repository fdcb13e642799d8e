"""The recorded run for tests: its records, and the messages of failed assertions."""

from __future__ import annotations

import gc
import inspect
import math
import os
import threading
import weakref
from pathlib import Path

import pytest

from trainwire import Run
from trainwire.ingest.run_start import RunOptions
from trainwire.testing import RecordedRun


def train(run: Run) -> None:
    """Train with code that uses the public methods of `Run` alone."""
    run.log("warming up", level="INFO")
    for epoch in (1, 2):
        run.metric(epoch=epoch, step=10 * epoch, loss=1 / epoch, values={"val/acc": math.nan})
    run.checkpoint("s3://bucket/best.pt", kind="best", epoch=2, metrics={"loss": 0.5})


def test_what_was_said_is_read_back() -> None:
    """Lines, values, progress, params and checkpoints are there while the run goes on, and its end after it."""
    with RecordedRun(7, "digits", total_epochs=4, params={"lr": 0.1}, tags={"team": "vision"}) as run:
        train(run)
        assert run.assert_logged("warming", level="INFO").text == "warming up"
        assert run.values("loss") == [1.0, 0.5]
        assert [(point.epoch, point.step) for point in run.points] == [(1, 10), (2, 20)]
        assert run.names == ["loss", "val/acc"]
        assert (run.params, run.tags) == ({"lr": 0.1}, {"team": "vision"})
        assert run.reported_progress.progress_percent == 50.0
        assert run.assert_checkpoint("best").uri == "s3://bucket/best.pt"
        assert run.completion is None
    completion = run.assert_completed()
    assert (completion.best_epoch, completion.total_epochs_completed) == (2, 2)
    assert completion.produced == {"logs": 1, "metrics": 1, "checkpoints": 1, "completions": 1}


def test_the_receipt_is_complete() -> None:
    """All messages count as stored, and the second receipt is the first."""
    run = RecordedRun()
    train(run)
    receipt = run.finish()
    assert receipt.complete
    assert run.finish() is receipt


def test_a_failure_has_its_traceback() -> None:
    """An exception that leaves the block is the run's failure."""

    def fail() -> None:
        with run:
            raise RuntimeError("out of memory")

    run = RecordedRun()
    with pytest.raises(RuntimeError):
        fail()
    assert "raise RuntimeError" in (run.assert_failed("out of memory").traceback or "")


def test_what_a_run_refuses_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """It raises the errors of `Run`, and leaves out the same arguments."""
    with pytest.raises(ValueError, match="job_id=-1 is not a whole number"):
        RecordedRun(-1)
    run = RecordedRun()
    run.log("a", log_type="out")  # type: ignore[arg-type]
    assert "log_type='out' (str) is not a log type: taken as 'stdout'" in caplog.text
    run.metric(loss="high")  # type: ignore[arg-type]
    assert run.points == []
    assert run.finish().dropped == {"values": 1}
    run.log("too late")
    assert run.text == "a"
    assert "the run is finished" in caplog.text


def test_nothing_is_started_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no thread, no spool, no snapshot."""
    monkeypatch.setenv("TRAINWIRE_JOB_ID", "42")
    monkeypatch.setenv("TRAINWIRE_SPOOL_DIR", str(tmp_path / "spool"))
    monkeypatch.setenv("TRAINWIRE_CHECKPOINT_BUCKET", "bucket")
    checkpoint = tmp_path / "last.pt"
    checkpoint.write_bytes(b"123")
    threads = threading.active_count()
    run = RecordedRun.from_env()
    run.log("a")
    run.checkpoint(checkpoint)
    assert run.job_id == 42
    assert run.assert_checkpoint("last").size_bytes == 3
    assert threading.active_count() == threads
    assert os.listdir(tmp_path) == ["last.pt"]


def test_a_run_that_is_left_unfinished_is_let_go() -> None:
    """Nothing holds it until the interpreter ends, as it holds one that sends."""
    run = RecordedRun()
    train(run)
    seen = weakref.ref(run)
    del run
    gc.collect()
    assert seen() is None


def test_the_environment_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that runs inside a job gives the same result as outside."""
    monkeypatch.setenv("TRAINWIRE_ATTEMPT", "3")
    monkeypatch.setenv("RANK", "5")
    run = RecordedRun()
    assert (run.attempt, run.rank) == (0, None)


def test_many_messages_are_kept() -> None:
    """Records of several messages are complete and in order, also when they are read again."""
    run = RecordedRun()
    for step in range(2500):
        run.metric(step=step, loss=step)
        run.log(f"line {step}", log_type="stderr" if step % 7 else "stdout")
        if step % 500 == 0:
            assert len(run.lines) == step + 1
    assert run.values("loss") == list(range(2500))
    assert [line.text for line in run.lines] == [f"line {step}" for step in range(2500)]


def test_a_failed_expectation_says_what_there_is() -> None:
    """The message has the expectation, and the values that were reported instead."""
    run = RecordedRun()
    with pytest.raises(AssertionError, match="no metric 'los' was reported, but: nothing"):
        run.values("los")
    train(run)
    with pytest.raises(AssertionError, match="no metric 'los' was reported, but: loss, val/acc"):
        run.values("los")
    with pytest.raises(AssertionError, match=r"no log line contains 'cold'; the last lines are: INFO: warming up"):
        run.assert_logged("cold")
    with pytest.raises(AssertionError, match="no log line at level ERROR contains 'warming'"):
        run.assert_logged("warming", level="ERROR")
    with pytest.raises(AssertionError, match=r"no checkpoint of kind 'last' .* but: best s3://bucket/best.pt"):
        run.assert_checkpoint("last")
    with pytest.raises(AssertionError, match="the run has not ended"):
        run.assert_completed()
    run.finish(error="disk full")
    with pytest.raises(AssertionError, match="the run failed: disk full"):
        run.assert_completed()
    with pytest.raises(AssertionError, match="failed, but with 'disk full', not 'memory'"):
        run.assert_failed("memory")


def test_a_run_that_completed_did_not_fail() -> None:
    """assert_failed raises for a run that has succeeded."""
    run = RecordedRun()
    run.finish()
    with pytest.raises(AssertionError, match="the run did not fail"):
        run.assert_failed()


def test_arguments_that_are_passed_on_are_those_of_a_run() -> None:
    """`from_env` and `RecordedRun` name every argument of `Run`, and no other, to type checkers."""
    named = {"job_id", "name", "settings", *RunOptions.__annotations__}
    assert named == set(inspect.signature(Run).parameters)
