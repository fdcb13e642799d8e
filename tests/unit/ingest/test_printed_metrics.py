"""Metrics in printed lines."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import pytest

from trainwire.ingest.hooks.caught import Caught
from trainwire.ingest.hooks.hooks import CatchOptions
from trainwire.ingest.hooks.printed import (
    PatternMatcher,
    PrintedMetrics,
    PrintedValues,
    checked_pattern,
    dict_values,
    groups_of_lines,
    json_values,
    values_of_groups,
)
from trainwire.testing import RecordedRun


def values_of_lines(patterns: Sequence[str], lines: Sequence[str]) -> list[PrintedValues]:
    """Return what the patterns find in the lines, in this process."""
    return values_of_groups([groups_of_lines(pattern, lines) for pattern in patterns])


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ('{"loss": 0.3, "step": 10}', PrintedValues({"loss": 0.3}, 10, None)),
        ('  {"loss": 1e3, "epoch": 1.5}\r', PrintedValues({"loss": 1000.0}, None, 1.5)),
        ('{"loss": 0.3}', None),
        ('{"step": 10}', None),
        ('{"step": 10, "level": "info", "ms": 3}', None),
        ('{"step": 10, "ok": true}', None),
        ('{"step": 10, "loss": "0.3"}', None),
        ('{"step": 10, "loss": {"a": 1}}', None),
        ('{"step": Infinity, "loss": 1}', PrintedValues({"loss": 1.0}, math.inf, None)),
        ("{" * 3000 + "}", None),
        ('{"step": 1, "loss": 1' + "0" * 4000 + "}", None),
        ("[1, 2]", None),
    ],
)
def test_json_lines_with_a_step_are_metrics(line: str, values: PrintedValues | None) -> None:
    """An object of numbers that names a step or an epoch counts; a structured log line does not."""
    assert json_values(line) == values


@pytest.mark.parametrize(
    ("line", "values"),
    [
        (
            "{'loss': 0.5, 'learning_rate': 1e-05, 'epoch': 0.3}",
            PrintedValues({"loss": 0.5, "learning_rate": 1e-05}, None, 0.3),
        ),
        ("{'loss': '0.5', 'epoch': '1'}", PrintedValues({"loss": 0.5}, None, 1.0)),
        ("{'loss': inf, 'low': -inf, 'epoch': 1}", PrintedValues({"loss": math.inf, "low": -math.inf}, None, 1.0)),
        ("{'loss': nans, 'epoch': 1}", None),
        ("{'note': 'loss: nan, bad', 'epoch': 1}", None),
        ("{'loss': 'high', 'epoch': '1'}", None),
        ("{'loss': __import__('os').getpid(), 'epoch': 1}", None),
        ("{'loss', 'epoch'}", None),
    ],
)
def test_dicts_of_transformers_are_metrics(line: str, values: PrintedValues | None) -> None:
    """The dict that a Trainer prints counts, with numbers or their texts; no code is run."""
    assert dict_values(line) == values


def test_a_nan_in_a_dict_of_transformers_is_a_value() -> None:
    """`print` shows it as a name; the point at which a training breaks is not left out."""
    found = dict_values("{'loss': nan, 'grad_norm': nan, 'learning_rate': 1e-05, 'epoch': 0.3}")
    assert found is not None
    assert [name for name, value in found.values.items() if math.isnan(value)] == ["loss", "grad_norm"]
    assert (found.values["learning_rate"], found.epoch) == (1e-05, 0.3)


@pytest.mark.parametrize(
    ("pattern", "line", "values"),
    [
        (r"step (?P<step>\d+) loss=(?P<loss>[0-9.]+)", "step 7 loss=0.25", PrintedValues({"loss": 0.25}, 7, None)),
        (
            r"(?P<name>[a-z_]+)=(?P<value>[-+0-9.e]+)",
            "epoch=2 loss=1e-3 lr=0.1",
            PrintedValues({"loss": 0.001, "lr": 0.1}, None, 2.0),
        ),
        (r"loss=(?P<loss>\S+)", "loss=nothing", None),
        (r"loss=(?P<loss>\S+)", "accuracy=1", None),
    ],
)
def test_a_pattern_names_its_metrics(pattern: str, line: str, values: PrintedValues | None) -> None:
    """Named groups are metrics, step and epoch; groups called name and value give one metric a match."""
    assert values_of_lines([checked_pattern(pattern)], [line]) == ([] if values is None else [values])


@pytest.mark.parametrize(
    ("pattern", "remedy"),
    [
        ("loss=(", "is no regular expression"),
        ("loss=(.*)", "names no group"),
        (r"(?P<name>\w+)=(\S+)", "has a group `name` and no group `value`"),
    ],
)
def test_a_wrong_pattern_is_named(pattern: str, remedy: str) -> None:
    """The error has the pattern and what to write instead."""
    with pytest.raises(ValueError, match=remedy) as error:
        checked_pattern(pattern)
    assert repr(pattern) in str(error.value)


def test_patterns_without_a_metric_are_named() -> None:
    """A pattern may find the step of another one's metrics, and is an error where there is no other."""
    step, loss = r"step (?P<step>\d+)", r"loss=(?P<loss>\S+)"
    assert CatchOptions(patterns=(step, loss)).patterns == (step, loss)
    with pytest.raises(ValueError, match="finds a step or an epoch, and no metric"):
        CatchOptions(patterns=(step, r"epoch (?P<epoch>\d+)"))


def test_printed_metrics_end_where_a_library_reports() -> None:
    """A training that prints what it also logs is counted once."""
    run = RecordedRun(1)
    caught = Caught(run, lambda _: run)
    printed = PrintedMetrics(caught)
    printed.take(['{"loss": 1, "step": 1}'], 10**18)
    caught.metrics("tensorboard", {"train/loss": 2.0}, ts=10**18, step=2)
    printed.take(['{"loss": 2, "step": 2}'], 10**18)
    assert [dict(point.values) for point in run.points] == [{"loss": 1.0}, {"train/loss": 2.0}]


def test_a_library_takes_a_metric_over_from_printed_lines() -> None:
    """Lines may be read before the records of the library that logs the same values: none of these is lost."""
    run = RecordedRun(1)
    caught = Caught(run, lambda _: run)
    PrintedMetrics(caught).take(["{'loss': 3, 'epoch': 1}"], 10**18)
    for step in (1, 2):
        caught.metrics("mlflow", {"loss": 4.0 - step}, ts=10**18, step=step)
    assert [(point.step, point.values["loss"]) for point in run.points] == [(None, 3.0), (1, 3.0), (2, 2.0)]


def test_a_fractional_epoch_is_kept() -> None:
    """Once an epoch is a fraction, epochs are values too; a point has the number of the current epoch."""
    run = RecordedRun(1)
    printed = PrintedMetrics(Caught(run, lambda _: run))
    lines = ("{'loss': 4, 'epoch': 0}", "{'loss': 3, 'epoch': 0.5}", "{'loss': '2', 'epoch': '1'}")
    printed.take([*lines, '{"loss": 1, "epoch": 1.25}', '{"loss": 0, "epoch": NaN}'], 10**18)
    assert [(point.epoch, dict(point.values)) for point in run.points] == [
        (0, {"loss": 4.0}),
        (1, {"loss": 3.0, "epoch": 0.5}),
        (1, {"loss": 2.0, "epoch": 1.0}),
        (2, {"loss": 1.0, "epoch": 1.25}),
        (None, {"loss": 0.0}),
    ]


def test_a_printed_step_is_never_changed(caplog: pytest.LogCaptureFixture) -> None:
    """A step with a fraction, or beyond 64 bits, is left out with one warning; whole numbers may be floats."""
    run = RecordedRun(1)
    printed = PrintedMetrics(Caught(run, lambda _: run))
    printed.take(
        [f'{{"loss": 1, "step": {step}}}' for step in ("2.0", str(2**60 + 1), "2.5", str(2**70), "NaN")], 10**18
    )
    assert [point.step for point in run.points] == [2, 2**60 + 1, None, None, None]
    assert values_of_lines([r"(?P<step>\d+) (?P<loss>\d+)"], [f"{2**60 + 1} 3"])[0].step == 2**60 + 1
    assert caplog.text.count("step=2.5 (float) is not a whole number: left out") == 1


def test_patterns_of_one_line_belong_together() -> None:
    """Several patterns find the metrics and the step of a line in different places."""
    patterns = [r"step (?P<step>\d+)", r"loss=(?P<loss>[0-9.]+)", r"(?P<name>lr|mom)=(?P<value>\d+)"]
    found = values_of_lines(patterns, ["step 3: loss=0.5 lr=1 mom=2", "done"])
    assert found == [PrintedValues({"loss": 0.5, "lr": 1.0, "mom": 2.0}, 3, None)]


def test_a_pattern_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is killed and named once; the other patterns keep their metrics of the same and of later lines."""
    monkeypatch.setattr("trainwire.ingest.hooks.printed.MATCH_TIMEOUT_S", 3.0)
    slow, loss, step = "^(?P<x>(a+)+)$", "loss=(?P<loss>[0-9.]+)", r"step (?P<step>\d+)"
    named: list[str] = []
    matcher = PatternMatcher([loss, slow, step], named.append)
    try:
        assert matcher.values(["b"]) == []
        lines = ["step 1 loss=0.5", "a" * 40 + "!", "step 2 loss=0.25"]
        expected = [PrintedValues({"loss": 0.5}, 1, None), PrintedValues({"loss": 0.25}, 2, None)]
        assert (matcher.values(lines), named) == (expected, [slow])
        assert (matcher.values(lines), named) == (expected, [slow])
    finally:
        matcher.close()


def test_a_slow_pattern_is_in_the_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence at the end of the job has the pattern and the remedy."""
    monkeypatch.setattr("trainwire.ingest.hooks.printed.MATCH_TIMEOUT_S", 3.0)
    run = RecordedRun(1)
    caught = Caught(run, lambda _: run)
    printed = PrintedMetrics(caught, ["^(?P<x>(a+)+)$", "loss=(?P<loss>[0-9.]+)"])
    try:
        printed.take(["loss=1", "a" * 40 + "!"], 10**18)
    finally:
        printed.close()
    assert [dict(point.values) for point in run.points] == [{"loss": 1.0}]
    sentence = caught.sentence() or ""
    assert "--metrics-regex '^(?P<x>(a+)+)$' failed (a line took longer than 3 s" in sentence
    assert "avoid nested repetitions" in sentence


def test_numbers_beyond_a_float_are_counted() -> None:
    """They are left out of their line and named at the end; infinities that are printed by name are values."""
    run = RecordedRun(1)
    caught = Caught(run, lambda _: run)
    lines = [
        '{"loss": 1e400, "lr": 1, "step": 1}',
        '{"loss": -Infinity, "step": 2}',
        "{'loss': 1e400, 'lr': inf, 'epoch': 1}",
        "{'loss': '-1e400', 'epoch': '1'}",
        f'{{"loss": 1{"0" * 400}, "step": 3}}',
    ]
    PrintedMetrics(caught).take(lines, 10**18)
    assert [dict(point.values) for point in run.points] == [{"lr": 1.0}, {"loss": -math.inf}, {"lr": math.inf}]
    assert "not taken: 4 of numbers beyond the range of a float (1.8e308) from printed lines" in (
        caught.sentence() or ""
    )
    (found,) = values_of_lines(["loss=(?P<loss>\\S+) lr=(?P<lr>\\S+)"], ["loss=1e999 lr=-inf"])
    assert found == PrintedValues({"lr": -math.inf}, None, None, beyond=1)


def test_a_text_with_a_backslash_causes_no_warning() -> None:
    """Python warns of an unknown escape, which the launcher would print between the output of the command."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert dict_values(r"{'step': 1, '\d': 2.0}") is None
    assert not caught
