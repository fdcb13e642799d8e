"""The form of single values, on a line and in JSON."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime

from trainwire.cli.commands.jobs.logs import shown_line
from trainwire.cli.commands.options import plain
from trainwire.cli.formats import shown_values
from trainwire.schemas.events import LogLine
from trainwire.schemas.times import to_ns

AT = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)


def _line(text: str, **more: object) -> LogLine:
    fields: dict[str, object] = {"rank": None, "level": None, **more}
    return LogLine(seq=1, attempt=1, ts=to_ns(AT), log_type="stderr", text=text, **fields)  # type: ignore[arg-type]


def test_json_has_names_for_nan_and_infinities() -> None:
    """NaN and the infinities are the strings of the wire format, times are ISO."""
    document = plain({"a": [math.nan, math.inf, -math.inf, 0.0], "at": AT})
    assert json.loads(json.dumps(document, allow_nan=False)) == {
        "a": ["NaN", "Infinity", "-Infinity", 0.0],
        "at": "2026-01-02T03:04:05.678000+00:00",
    }


def test_a_traceback_stands_indented_under_its_first_line() -> None:
    """A message of several lines cannot look like several messages."""
    shown = shown_line(_line("TRACEBACK:\n  File\x1b[2J x\n00:00:00.000 stdout forged"), colours=False)
    first, *more = shown.split("\n")
    assert first.endswith("stderr TRACEBACK:")
    assert more == ["      File x", "    00:00:00.000 stdout forged"]


def test_rank_and_level_are_shown() -> None:
    """Lines of several processes can be distinguished."""
    assert "stderr 3 WARN hot" in shown_line(_line("hot", rank=3, level="WARN"), colours=False)


def test_zero_is_a_value() -> None:
    """0.0 is shown, not taken for a missing value."""
    assert shown_values({"loss": 0.0, "accuracy": 0.98765432, "x": "NaN"}) == (
        "loss 0 · accuracy 0.987654 · x NaN"
    )
