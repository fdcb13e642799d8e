"""An exception of a signal handler of the training during a call of a run reaches the training."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from trainwire.testing import RecordedRun


class PreemptionError(Exception):
    """Raised by a handler."""


def _raise(*_: object) -> None:
    raise PreemptionError


class _Handler:
    def __call__(self, *_: object) -> None:
        raise PreemptionError

    def method(self, *_: object) -> None:
        """Handle a signal."""
        raise PreemptionError


class _Signalling:
    """A value of which each conversion is interrupted by a signal."""

    def __float__(self) -> float:
        signal.raise_signal(signal.SIGUSR1)
        return 0.5

    def __str__(self) -> str:
        signal.raise_signal(signal.SIGUSR1)
        return "text"

    __repr__ = __str__


@pytest.fixture(
    params=[_raise, functools.partial(_raise, 1), _Handler(), _Handler().method],
    ids=["function", "partial", "object", "method"],
)
def _handler(request: pytest.FixtureRequest) -> Iterator[None]:
    before = signal.signal(signal.SIGUSR1, request.param)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.usefixtures("_handler")
@pytest.mark.parametrize(
    "call",
    [
        lambda run, value: run.metric(loss=value),
        lambda run, value: run.log({"loss": value}, step=1),
        lambda run, value: run.log(value),
        lambda run, value: run.log("%s", value),
    ],
    ids=["metric", "log of numbers", "log", "log of a format"],
)
def test_the_exception_of_a_handler_reaches_the_training(call: Callable[[RecordedRun, Any], None]) -> None:
    """A timeout or a pre-emption that interrupts a call is not lost in it."""
    with RecordedRun() as run:
        with pytest.raises(PreemptionError):
            call(run, _Signalling())
        run.log("goes on")
    assert [line.text for line in run.lines] == ["goes on"]


def test_what_a_value_raises_itself_does_not(caplog: pytest.LogCaptureFixture) -> None:
    """The same exception of the value's own code is no reason to end the training."""

    class Odd:
        def __float__(self) -> float:
            raise PreemptionError

    run = RecordedRun()
    run.metric(loss=Odd())
    assert run.points == []
    assert "is not a number" in caplog.text
