"""Mistakes in calls of the SDK: no call raises, clear arguments are used, and each mistake is one warning."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from trainwire.ingest.call_guard import forgiving

Tell = Callable[..., Any]


class Tensor:
    """One number on a device: it can only be read with `item`."""

    def __init__(self, value: object) -> None:
        self._value = value

    def item(self) -> object:
        """Return it as Python has it."""
        return self._value


class Series:
    """A container whose `item` takes an argument, and which is a number all the same."""

    def item(self, index: int) -> float:
        """Return one element."""
        return float(index)

    def __float__(self) -> float:
        return 4.0


NUMBERS: dict[str, tuple[Any, float]] = {
    "an array of one": (np.array([0.5]), 0.5),
    "a nested array of one": (np.array([[7]]), 7.0),
    "a 0-d array": (np.array(0.5), 0.5),
    "a tensor of a GPU": (Tensor(0.25), 0.25),
    "a tensor of truth": (Tensor(True), 1.0),
    "another item": (Series(), 4.0),
    "numpy bool": (np.bool_(True), 1.0),
    "half": (np.float16(0.5), 0.5),
    "decimal": (Decimal("0.1"), 0.1),
    "fraction": (Fraction(1, 4), 0.25),
    "truth": (True, 1.0),
    "zero": (0, 0.0),
    "infinite": (Decimal("-Infinity"), -math.inf),
}
NO_NUMBERS: dict[str, tuple[Any, str]] = {
    "complex": (1 + 2j, "give abs(value)"),
    "numpy complex": (np.complex64(1 + 2j), "give abs(value)"),
    "an array of complex": (np.array([1j]), "give abs(value)"),
    "text": ("0.5", "float('0.5')"),
    "numpy text": (np.str_("0.5"), "float('0.5')"),
    "bytes": (b"1", "float('0.5')"),
    "an array of text": (np.array(["0.5"]), "float('0.5')"),
    "a tensor of text": (Tensor("0.5"), "float('0.5')"),
    "huge": (10**400, "math.log10(value)"),
    "huge decimal": (Decimal("1e400"), "math.log10(value)"),
    "huge fraction": (Fraction(10**400), "math.log10(value)"),
    "array": (np.zeros(3), "value.mean()"),
    "nothing": (np.zeros(0), "value.mean()"),
    "list": ([0.5], "value.mean()"),
    "mapping": ({"loss": 0.5}, "train/loss"),
    "a time": (np.datetime64(5, "ns"), "give a float"),
    "object": (object(), "give a float"),
}
CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "log": lambda run, value: run.log({"a": value, "loss": 1}),
    "metric": lambda run, value: run.metric(a=value, loss=1),
    "values": lambda run, value: run.metric(values={"a": value}, loss=1),
    "checkpoint": lambda run, value: run.checkpoint("s3://b/a.pt", metrics={"a": value, "loss": 1}),
}


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return our warnings but those of the server that the run of a test cannot reach."""
    found = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    return [text for text in found if "cannot send to Redis" not in text]


def reported(told: Any) -> dict[str, float]:
    """Return the values of the only point or checkpoint."""
    found: list[Any] = [point.values for point in told.points()]
    found += [body.metrics for body in told.bodies("checkpoints")]
    (values,) = found
    return dict(values)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_is_taken(tell: Tell, caplog: pytest.LogCaptureFixture, name: str, call: str) -> None:
    """Scalars, arrays and tensors with one element, of any library, are taken without a warning."""
    told = tell()
    value, taken = NUMBERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CALLS[call](told.run, value)
    assert reported(told) == {"a": taken, "loss": 1.0}
    assert not warned(caplog)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", NO_NUMBERS)
def test_every_other_value_is_named_once(
    tell: Tell, caplog: pytest.LogCaptureFixture, name: str, call: str
) -> None:
    """The warning has the key, the value and the remedy; the rest of the call is taken."""
    told = tell()
    value, remedy = NO_NUMBERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CALLS[call](told.run, value)
        told.run.metric(a=value)
    assert reported(told) == {"loss": 1.0}
    (text,) = warned(caplog)
    assert text.startswith("job 42: metric 'a'=")
    assert "not a number: left out; " in text
    assert remedy in text
    assert len(text) < 300


@pytest.mark.parametrize("name", ["", " ", "\n"])
def test_a_metric_without_a_name_is_left_out(tell: Tell, caplog: pytest.LogCaptureFixture, name: str) -> None:
    """One warning has the value and the remedy; the other values are taken."""
    told = tell()
    for _ in range(2):
        told.run.metric(values={name: 1, "loss": 0.5})
    assert [point.values for point in told.points()] == [{"loss": 0.5}] * 2
    (text,) = warned(caplog)
    assert f"metric {name!r}=1 (int) is without a name: left out; give it one" in text


def test_params_of_one_element_are_numbers(tell: Tell) -> None:
    """Truth stays truth; complex numbers and texts that look like numbers are texts."""
    odd = {
        "bool": np.bool_(True),
        "one": np.array([0.5]),
        "tensor": Tensor(3),
        "half": np.float16(0.5),
        "decimal": Decimal("0.1"),
        "complex": np.complex64(1 + 2j),
        "text": np.str_("0.5"),
        "huge": 10**5000,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (header,) = tell(params=odd).bodies("metrics")
    assert header.params == {
        "bool": True,
        "one": 0.5,
        "tensor": 3,
        "half": 0.5,
        "decimal": 0.1,
        "complex": "(1+2j)",
        "text": "0.5",
        "huge": "<int without a text>",
    }


MISPLACED: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
    "a name and a value": (lambda run: run.metric("loss", 1), [({"loss": 1.0}, None)]),
    "a step behind them": (lambda run: run.metric("loss", 0.5, 10), [({"loss": 0.5}, 10)]),
    "several pairs": (lambda run: run.metric("a", 1, "b", 2, epoch=None), [({"a": 1.0, "b": 2.0}, None)]),
    "a pair and a name": (lambda run: run.metric("a", 1, b=2), [({"a": 1.0, "b": 2.0}, None)]),
    "a mapping": (lambda run: run.metric({"a": 1}, 3), [({"a": 1.0}, 3)]),
    "a mapping and values": (lambda run: run.metric({"a": 1}, values={"b": 2}), [({"a": 1.0, "b": 2.0}, None)]),
    "log with a step": (lambda run: run.log({"a": 1}, 3), [({"a": 1.0}, 3)]),
    "log with arguments of others": (lambda run: run.log({"a": 1}, step=3, commit=True), [({"a": 1.0}, 3)]),
    "log with two mappings": (lambda run: run.log({"a": 1}, {"b": 2}, 3), [({"a": 1.0, "b": 2.0}, 3)]),
    "log with two steps": (lambda run: run.log({"a": 1}, 10, 20), [({"a": 1.0}, 10)]),
    "a value alone": (lambda run: run.metric(0.5), []),
    "nothing": (lambda run: run.log(), []),
}


@pytest.mark.parametrize("call", MISPLACED)
def test_values_in_a_wrong_place_are_kept(tell: Tell, caplog: pytest.LogCaptureFixture, call: str) -> None:
    """They are used as meant; one warning shows the right call."""
    told = tell()
    misplaced, points = MISPLACED[call]
    misplaced(told.run)
    misplaced(told.run)
    assert [(point.values, point.step) for point in told.points()] == points * 2
    (text,) = warned(caplog)
    assert " does not fit run." in text


TOO_MANY: dict[str, tuple[Callable[[Any], Any], str]] = {
    "log": (
        lambda run: run.log({"a": 1}, 10, 20),
        "left out: 20; taken as run.log(step=10, text={'a': 1})",
    ),
    "log with a named step": (
        lambda run: run.log({"a": 1}, 20, step=10),
        "left out: 20; taken as run.log(step=10, text={'a': 1})",
    ),
    "log with a text": (lambda run: run.log({"a": 1}, "b"), "left out: 'b'; taken as run.log(text={'a': 1})"),
    "metric": (
        lambda run: run.metric({"a": 1}, 10, 20),
        "left out: 20; taken as run.metric(values={'a': 1}, step=10)",
    ),
}


@pytest.mark.parametrize("call", TOO_MANY)
def test_a_value_that_is_left_out_is_named(tell: Tell, caplog: pytest.LogCaptureFixture, call: str) -> None:
    """Of a call with too many values, those with a meaning are kept, and the warning names the others."""
    told = tell()
    made, words = TOO_MANY[call]
    made(told.run)
    (point,) = told.points()
    assert (point.values, point.step) == ({"a": 1.0}, None if call == "log with a text" else 10)
    (text,) = warned(caplog)
    assert f"{words}, write it so" in text


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("a", "stderr"), ("stderr", "a")),
        (("epoch %d: %s", 3, "x"), ("stdout", "epoch 3: x")),
        (("epoch", 3, 0.5), ("stdout", "epoch 3 0.5")),
        (("100 %", 3), ("stdout", "100 % 3")),
    ],
)
def test_texts_by_position_are_one_line(tell: Tell, arguments: tuple[Any, ...], line: tuple[str, str]) -> None:
    """As `print` and `logging` have them."""
    told = tell()
    told.run.log(*arguments)
    (body,) = told.bodies("logs")
    assert (body.log_type, *body.lines) == line


def test_a_name_of_pythons_own_is_a_metric(tell: Tell) -> None:
    """No name of a metric is taken."""
    told = tell()
    told.run.metric(self=1, name=2, ts=3)
    assert told.points()[0].values == {"self": 1.0, "name": 2.0, "ts": 3.0}


WRONG_WORDS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "log_type": (lambda run: run.log("a", log_type="stdrr"), "log_type='stdrr' (str) is not a log type: taken as"),
    "log_lines": (lambda run: run.log_lines("a\nb", "x", 0), "log_type='x' (str) is not a log type: taken as"),
    "kind": (
        lambda run: run.checkpoint("s3://b/a", kind=""),
        "kind='' (str) is not a kind of checkpoint: taken",
    ),
    "upload": (
        lambda run: run.checkpoint("s3://b/a", upload="maybe"),
        "upload='maybe' (str) is not a way to upload",
    ),
    "path": (lambda run: run.checkpoint(None), "path=None (NoneType) is not a path: left out"),
    "epoch": (lambda run: run.metric(epoch="3", a=1), "epoch='3' (str) is not a whole number: left out; give one"),
    "step": (
        lambda run: run.checkpoint("s3://b/a", step=math.nan),
        "step=nan (float) is not a whole number: left",
    ),
    "percent": (lambda run: run.progress(percent="5"), "percent='5' (str) is not a number: left out"),
    "an unknown name": (lambda run: run.progress(1, epochs=3), "run.progress(1, epochs=3) does not fit"),
    "too many": (
        lambda run: run.checkpoint("s3://b/a", "last", 3),
        "taken as run.checkpoint(path='s3://b/a', kind='last')",
    ),
    "numbers without a name": (
        lambda run: run.metric(0, 1.0),
        "run.metric(0, 1.0) does not fit run.metric(epoch=, step=, values=, checkpoint_path=, **named): "
        "the arguments are left out; write run.metric(loss=0.5, step=10)",
    ),
    "a number too many": (
        lambda run: run.metric(5, loss=0.5),
        "left out: 5; taken as run.metric(loss=0.5), write it so",
    ),
    "no text": (lambda run: run.log(), 'it is left out; write run.log("text")'),
    "describe": (
        lambda run: run.describe(param={"a": 1}),
        """the arguments are left out; write run.describe(params={"lr": 0.1})""",
    ),
    "status": (lambda run: run.finish("done", timeout_s=0), "status='done' (str) is not a way to end: taken as"),
    "finish": (
        lambda run: run.finish(quiet=True, timeout_s=0),
        "run.finish(quiet=True, timeout_s=0) does not",
    ),
}


def test_a_wrong_description_is_left_out(tell: Tell, caplog: pytest.LogCaptureFixture) -> None:
    """Params or tags that are no mapping are one warning, and no error."""
    told = tell()
    for wrong in ({"params": [1]}, {"tags": "a"}):
        told.run.describe(**wrong)
    told.run.describe(tags={"a": 1})
    assert told.bodies("metrics")[-1].tags == {"a": 1}
    assert warned(caplog) == ["job 42: params=[1] is no mapping: give a dictionary, such as vars(args); left out"]


@pytest.mark.parametrize("call", WRONG_WORDS)
def test_a_wrong_argument_is_named_once(tell: Tell, caplog: pytest.LogCaptureFixture, call: str) -> None:
    """With its value and the remedy; the training goes on."""
    told = tell()
    wrong, sentence = WRONG_WORDS[call]
    wrong(told.run)
    wrong(told.run)
    assert [sentence in text for text in warned(caplog)].count(True) == 1


WHOLE_NUMBERS: dict[str, Any] = {
    "a float": (3.0, 3),
    "numpy's float": (np.float32(3), 3),
    "numpy's integer": (np.int64(2**60 + 1), 2**60 + 1),
    "an array of one": (np.array([3]), 3),
    "a tensor": (Tensor(2**60 + 1), 2**60 + 1),
    "a decimal": (Decimal(3), 3),
    "negative": (-1, -1),
    "the largest": (2**63 - 1, 2**63 - 1),
}


@pytest.mark.parametrize("name", WHOLE_NUMBERS)
def test_whole_numbers_of_any_type_are_steps_and_epochs(
    tell: Tell, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """They keep all their digits, and give no warning."""
    told = tell()
    value, whole = WHOLE_NUMBERS[name]
    told.run.metric(step=value, epoch=value, loss=1)
    told.run.checkpoint("s3://b/a.pt", step=value, epoch=value)
    (point,), (checkpoint,) = told.points(), told.bodies("checkpoints")
    assert [point.step, point.epoch, checkpoint.step, checkpoint.epoch] == [whole] * 4
    assert not warned(caplog)


WRONG_STEPS: dict[str, tuple[Any, str]] = {
    "a fraction": (2.5, "step=2.5 (float) is not a whole number: left out; give one, such as int(value)"),
    "numpy's fraction": (np.float64(2.5), "is not a whole number: left out"),
    "a tensor of a fraction": (Tensor(2.5), "is not a whole number: left out"),
    "infinite": (math.inf, "step=inf (float) is not a whole number: left out"),
    "truth": (True, "step=True (bool) is not a whole number: left out"),
    "70 bits": (2**70, f"step={2**70} (int) is beyond 64 bits: left out; give a number below 2**63"),
    "64 bits": (2**63, "is beyond 64 bits"),
    "beyond a float": (10**400, "is beyond 64 bits"),
    "a huge float": (1e30, "step=1e+30 (float) is beyond 64 bits"),
    "array": (np.zeros(3), "is not a whole number"),
}


@pytest.mark.parametrize("name", WRONG_STEPS)
def test_a_step_is_never_changed(tell: Tell, caplog: pytest.LogCaptureFixture, name: str) -> None:
    """One that cannot be stored is left out with one warning; the values of the call are kept."""
    told = tell()
    value, sentence = WRONG_STEPS[name]
    told.run.metric(step=value, loss=1)
    told.run.metric_at(10**18, {"loss": 2}, step=value)
    told.run.checkpoint("s3://b/a.pt", step=value)
    assert [(point.values["loss"], point.step) for point in told.points()] == [(1.0, None), (2.0, None)]
    assert told.bodies("checkpoints")[0].step is None
    (text,) = warned(caplog)
    assert sentence in text


def test_an_epoch_with_a_fraction_is_the_epoch_that_it_is_in(tell: Tell, caplog: pytest.LogCaptureFixture) -> None:
    """As some frameworks count them; one warning has the value, the number used and the remedy."""
    told = tell()
    for epoch in (0.5, 1.25, 2.0, 2.5):
        told.run.metric(epoch=epoch, loss=1)
    assert [point.epoch for point in told.points()] == [0, 1, 2, 2]
    (text,) = warned(caplog)
    assert "epoch=0.5 (float) is not a whole number: taken as 0; write epoch=0" in text
    told.run.metric(epoch=2**70, loss=1)
    assert told.points()[-1].epoch is None
    assert told.run.finish(timeout_s=0).dropped == {"values": 1}


@pytest.mark.parametrize(
    ("arguments", "status", "exit_code"),
    [
        (("done",), "completed", None),
        (("Failed",), "failed", None),
        (("cancelled",), "failed", None),
        (("whatever",), "ended", None),
        ((0,), "completed", 0),
        ((3,), "failed", 3),
        ((ValueError("bad"),), "failed", None),
    ],
)
def test_a_status_of_other_words_is_understood(
    tell: Tell, arguments: tuple[Any, ...], status: str, exit_code: int | None
) -> None:
    """Words of other trackers, exit codes and exceptions; a word that is unknown claims nothing."""
    told = tell()
    told.run.finish(*arguments, timeout_s=0)
    (completion,) = told.bodies("completions")
    assert (completion.status, completion.exit_code) == (status, exit_code)


def test_an_error_inside_a_call_is_not_hidden() -> None:
    """A handler of a signal may raise a TypeError while a call runs: it is the training's."""

    class Interrupted:
        @forgiving()
        def log(self, text: str) -> None:
            raise TypeError(f"a handler, while {text} was logged")

    with pytest.raises(TypeError, match="a handler, while a was logged"):
        Interrupted().log("a")
