"""Odd values in calls of a run: the training goes on, and all other values arrive."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainwire.ingest.arguments import LONGEST_TIMEOUT_S, Arguments
from trainwire.ingest.identity.origin import Origin
from trainwire.ingest.sending.buffer import Buffer
from trainwire.ingest.sending.outbox import Outbox
from trainwire.ingest.sending.sender import Sender
from trainwire.ingest.servers.destinations import NamedServer
from trainwire.ingest.settings.setting_groups import Timing
from trainwire.schemas.wire.validation import MAX_ATTEMPT

Tell = Callable[..., Any]


class Word(str):
    """A text of a library's own type, whose own text is another."""

    __slots__ = ()

    def __str__(self) -> str:
        return "another"


class Colour(StrEnum):
    """A text that is a member of an enum."""

    RED = "red"


class Index:
    """Something with nothing but an index."""

    def __index__(self) -> int:
        return 3


class Hostile:
    """Raises in every method."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __repr__(self) -> str:
        raise RuntimeError("no text")

    def __bool__(self) -> bool:
        raise KeyError("no truth")

    def __float__(self) -> float:
        raise ZeroDivisionError

    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)


ODD: dict[str, Any] = {
    "path": Path("x"),
    "numpy bool": np.bool_(True),
    "numpy int": np.int64(7),
    "numpy float": np.float32(0.5),
    "array": np.zeros(2),
    "text": Word("word"),
    "enum": Colour.RED,
    "object": object(),
    "index": Index(),
    "hostile": Hostile(),
    "huge": 2**70,
    "beyond int32": 2**31,
    "nan": math.nan,
    "infinity": math.inf,
    "bytes": b"x\xff",
    "list": [1],
}
CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "log text": lambda run, odd: run.log(odd),
    "log level": lambda run, odd: run.log("odd", level=odd),
    "log_lines lines": lambda run, odd: run.log_lines([odd], "stdout", 0),
    "log_lines ts": lambda run, odd: run.log_lines(["odd"], "stdout", odd),
    "metric epoch": lambda run, odd: run.metric(epoch=odd, loss=2),
    "metric step": lambda run, odd: run.metric(step=odd, loss=2),
    "metric values": lambda run, odd: run.metric(values=odd, loss=2),
    "metric value": lambda run, odd: run.metric(odd=odd, loss=2),
    "metric name": lambda run, odd: run.metric(values=[(odd, 1.0)], loss=2),
    "metric checkpoint_path": lambda run, odd: run.metric(loss=2, checkpoint_path=odd),
    "progress epoch": lambda run, odd: run.progress(odd),
    "progress total_epochs": lambda run, odd: run.progress(1, total_epochs=odd),
    "progress percent": lambda run, odd: run.progress(1, percent=odd),
    "checkpoint path": lambda run, odd: run.checkpoint(odd),
    "checkpoint kind": lambda run, odd: run.checkpoint("s3://b/a", odd),
    "checkpoint epoch": lambda run, odd: run.checkpoint("s3://b/a", epoch=odd),
    "checkpoint step": lambda run, odd: run.checkpoint("s3://b/a", step=odd),
    "checkpoint metrics": lambda run, odd: run.checkpoint("s3://b/a", metrics=odd),
    "checkpoint metric": lambda run, odd: run.checkpoint("s3://b/a", metrics={"odd": odd}),
    "checkpoint is_best": lambda run, odd: run.checkpoint("s3://b/a", is_best=odd),
}
ENDINGS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "exit_code": lambda odd: {"exit_code": odd},
    "error": lambda odd: {"error": odd},
    "final_metrics": lambda odd: {"final_metrics": odd},
    "a final metric": lambda odd: {"final_metrics": {"odd": odd}},
    "best_metrics": lambda odd: {"best_metrics": odd},
    "best_epoch": lambda odd: {"best_epoch": odd},
}


@pytest.mark.parametrize("said", CALLS)
@pytest.mark.parametrize("odd", ODD)
def test_odd_values_disturb_nothing(tell: Tell, said: str, odd: str) -> None:
    """No call raises, and the values before and after arrive, with the completion."""
    told = tell()
    told.run.log("before")
    told.run.metric(loss=1)
    CALLS[said](told.run, ODD[odd])
    told.run.log("after")
    told.run.metric(loss=3)
    told.run.checkpoint("s3://bucket/after.pt")
    dropped = told.run.finish(timeout_s=0).dropped
    lines, losses = told.lines(), [point.values.get("loss") for point in told.points()]
    assert (lines[0], losses[0]) == ("before", 1.0)
    assert (lines[-1], losses[-1]) == ("after", 3.0)
    assert told.bodies("checkpoints")[-1].uri == "s3://bucket/after.pt"
    assert len(told.bodies("completions")) == 1
    assert dropped.keys() <= {"values"}


@pytest.mark.parametrize("said", ENDINGS)
@pytest.mark.parametrize("odd", ODD)
def test_odd_endings_are_endings(tell: Tell, said: str, odd: str) -> None:
    """With any arguments `finish` does not raise, and the completion is the last message."""
    told = tell()
    told.run.log("before")
    receipt = told.run.finish(**{"timeout_s": 0, **ENDINGS[said](ODD[odd])})
    assert told.lines() == ["before"]
    assert len(told.bodies("completions")) == 1
    assert receipt.produced == {"logs": 1, "metrics": 1, "completions": 1}
    assert receipt.dropped.keys() <= {"values"}


@pytest.mark.parametrize("odd", ODD)
def test_odd_names_params_and_tags_are_text(tell: Tell, odd: str) -> None:
    """With any name, params and tags the first message can be sent."""
    value = ODD[odd]
    told = tell(name=value, params={"odd": value, "lr": 0.1}, tags={"odd": [value]})
    (body,) = told.bodies("metrics")
    assert body.params["lr"] == 0.1
    assert body.name
    assert not told.run.finish(timeout_s=0).dropped


@pytest.mark.parametrize("name", ["", " ", "\t\n", "\u3000"])
def test_a_blank_name_is_no_name(tell: Tell, name: str) -> None:
    """A name of white space does not replace the name that the job has."""
    (body,) = tell(name=name).bodies("metrics")
    assert body.name is None


def test_what_has_a_meaning_keeps_it(tell: Tell) -> None:
    """Paths, words, numbers and levels of other types arrive with their meaning."""
    told = tell(name=Path("digits"))
    told.run.log(Word("line"), level=20)
    told.run.log(Colour.RED, level=np.int64(15))
    told.run.log(Hostile(), level=Word("high"))
    told.run.metric(loss=1.0, checkpoint_path=Path("s3://a/b.pt"))
    told.run.checkpoint("s3://b/b.pt", Colour.RED, is_best=np.bool_(True), epoch=np.float64(2.0))
    told.run.finish(best_epoch=Index(), exit_code=2**31, error=Path("disk"), timeout_s=0)
    (logs,) = told.bodies("logs")
    assert logs.lines == ["line", "red", "<Hostile without a text>"]
    assert logs.levels == ["INFO", "Level 15", "high"]
    assert told.bodies("metrics")[0].name == "digits"
    assert told.points()[0].checkpoint_path == "s3://a/b.pt"
    (checkpoint,) = told.bodies("checkpoints")
    assert (checkpoint.kind, checkpoint.is_best, checkpoint.epoch) == ("red", True, 2)
    (completion,) = told.bodies("completions")
    assert (completion.status, completion.exit_code) == ("failed", MAX_ATTEMPT)
    assert (completion.best_epoch, completion.error_message) == (3, "disk")


def test_what_is_no_mapping_is_named_once(tell: Tell, caplog: pytest.LogCaptureFixture) -> None:
    """Metrics that are no mapping are left out, counted and warned of once."""
    told = tell()
    for _ in range(2):
        told.run.metric(values=[1], loss=1)
    receipt = told.run.finish(final_metrics=[1], timeout_s=0)
    assert receipt.dropped == {"values": 3}
    assert caplog.text.count("values=[1] (list) is not a mapping") == 1
    assert caplog.text.count("final_metrics=[1] (list) is not a mapping") == 1
    assert told.bodies("completions")[0].final_metrics == {"loss": 1.0}


def test_a_checkpoint_after_the_folder_was_deleted(
    tell: Tell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a relative path leads nowhere any more it is kept as it was given."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    told = tell()
    told.run.checkpoint("best.pt")
    assert told.bodies("checkpoints")[0].uri == "best.pt"
    os.chdir(tmp_path)


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [(2**40, 0), (2**70, 255), (256, 0), (-1, 255), (True, 1), (False, 0), (0.0, 1), (b"x", 1)],
)
def test_an_odd_exit_can_be_stored(tell: Tell, monkeypatch: pytest.MonkeyPatch, code: Any, exit_code: int) -> None:
    """The argument of sys.exit gives the completion the exit code of the process."""
    monkeypatch.setattr("trainwire.ingest.sending.session.DEFAULT_TIMEOUT_S", 0.0)
    told = tell()
    with pytest.raises(SystemExit), told.run:
        raise SystemExit(code)
    (completion,) = told.bodies("completions")
    assert (type(completion.exit_code), completion.exit_code) == (int, exit_code)
    assert completion.status == ("failed" if exit_code else "completed")


@pytest.mark.parametrize(
    ("timeout_s", "seconds"),
    [(np.float32(0.5), 0.5), (-1, 0.0), (-math.inf, 0.0), (math.inf, LONGEST_TIMEOUT_S), (None, None)],
)
def test_an_odd_timeout_is_a_number_of_seconds(timeout_s: Any, seconds: float | None) -> None:
    """Any number is a time to wait; None is the default, without a warning."""
    wrong: list[object] = []
    assert Arguments(wrong.append).timeout_s(timeout_s) == seconds
    assert not wrong


@pytest.mark.parametrize("timeout_s", [math.nan, b"x", "5"])
def test_a_timeout_that_is_no_number_is_the_default(timeout_s: Any) -> None:
    """The warning has the remedy."""
    wrong: list[object] = []
    assert Arguments(wrong.append).timeout_s(timeout_s) is None
    assert "is not a number of seconds: the default is used; write timeout_s=10" in str(wrong[0])


class Broken(Outbox):
    """An outbox that cannot be cut."""

    def cut(self) -> bool:
        """Raise."""
        raise RuntimeError("out of order")


def test_a_sender_outlives_an_outbox_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """An error while messages are made is logged, and ends neither the sender nor `finish`."""
    wake = threading.Event()
    outbox = Broken(Origin(42, 1, "0-test", 0), Buffer(1_000_000, wake))
    sender = Sender(outbox, NamedServer("redis://127.0.0.1:1/0"), Timing(first_backoff_s=30), wake)
    sender._work()
    assert "out of order" in caplog.text
    sender.finish(timeout_s=0)
