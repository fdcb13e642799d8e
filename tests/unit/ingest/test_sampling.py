"""Log storms, thinned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from trainwire import TrainerSettings
from trainwire.ingest.lines.sampling import SECOND_NS, LineSampler


@pytest.mark.parametrize("chunk", [1, 7, 100, 1000])
def test_beyond_the_limit_every_hundredth_line_is_taken(chunk: int) -> None:
    """With ten lines per second, the first ten of a thousand and nine of the others are taken, in any chunks."""
    sampler = LineSampler(10)
    lines = [str(number) for number in range(1, 1001)]
    samples = [sampler.sample(lines[begin : begin + chunk], "stdout", 5) for begin in range(0, 1000, chunk)]
    assert [line for sample in samples for line in sample.lines] == [
        *map(str, range(1, 11)),
        *map(str, range(110, 1001, 100)),
    ]
    assert sum(sample.left_out for sample in samples) == 1000 - 19


def test_the_next_second_says_what_was_left_out() -> None:
    """The notice comes once, with the first lines of a later second, which has its own room."""
    sampler = LineSampler(10)
    sampler.sample(["x"] * 50, "stdout", 0)
    assert sampler.sample(["x"], "stdout", SECOND_NS - 1).notice is None
    later = sampler.sample(["x"] * 10, "stdout", SECOND_NS)
    assert later.notice == (
        "trainwire: 41 of 51 lines left out: more than 10 came within a second (TRAINWIRE_LOG_LINES_PER_S)"
    )
    assert (len(later.lines), later.left_out) == (10, 0)
    assert sampler.sample(["x"], "stdout", 3 * SECOND_NS).notice is None


def test_a_storm_on_stdout_hides_no_error() -> None:
    """Each output has its own room."""
    sampler = LineSampler(10)
    sampler.sample(["x"] * 1000, "stdout", 0)
    assert sampler.sample(["Traceback"], "stderr", 1).lines == ["Traceback"]
    assert list(sampler.close()) == ["stdout"]


def test_a_run_thins_what_it_logs_and_counts_it(tell: Callable[..., Any]) -> None:
    """Sampled lines are counted in the log and in the receipt; without a limit all are taken."""
    settings = replace(TrainerSettings(redis_url="redis://127.0.0.1:1/0"), log_lines_per_s=5)
    told = tell(settings=settings)
    told.run.log("\n".join(["a"] * 105))
    told.run.log("b", log_type="stderr", level="ERROR")
    receipt = told.run.finish(timeout_s=0)
    bodies = told.bodies("logs")
    assert [len(body.lines) for body in bodies] == [6, 1, 1]
    assert bodies[1].levels == ["ERROR"]
    assert bodies[2].lines == [
        "trainwire: 99 of 105 lines left out: more than 5 came within a second (TRAINWIRE_LOG_LINES_PER_S)"
    ]
    assert bodies[2].levels == ["WARNING"]
    assert receipt.dropped == {"logs": 99}
    assert told.bodies("completions")[0].dropped == {"logs": 99}
    unlimited = tell()
    unlimited.run.log("\n".join(["a"] * 10_000))
    assert len(unlimited.lines()) == 10_000
