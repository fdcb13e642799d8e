"""`trainwire metrics --names --csv`."""

from __future__ import annotations

import csv
import io
import math

import pytest

from tests.factories import NOW_NS, Sender, drain
from tests.integration.cli.conftest import Trainwire
from trainwire.schemas.wire.messages import Metrics, Point
from trainwire.workers.resources import Resources


@pytest.fixture
def _stored(resources: Resources, sender: Sender) -> None:
    points = [Point(ts=NOW_NS + step, step=step, values={"loss": step / 2, "x": math.nan}) for step in range(600)]
    points += [Point(ts=NOW_NS + 10**6, values={"val/acc": 0.5, "acc": 1.0})]
    sender.send(Metrics(points=points), job=42)
    drain(resources, "metrics", 42)


@pytest.mark.usefixtures("_stored")
def test_all_points_are_printed(connected: Trainwire) -> None:
    """More than the table's 500 points; NaN by its name, a metric that a point lacks is empty."""
    outcome = connected("metrics", "42", "--csv")
    rows = list(csv.DictReader(io.StringIO(outcome.out)))
    assert (outcome.code, len(rows)) == (0, 601)
    place = {"seq": "2", "attempt": "1", "rank": "", "epoch": "", "step": "1", "ts": str(NOW_NS // 1000 * 1000)}
    assert rows[1] == place | {"accuracy": "", "loss": "0.5", "val/acc": "", "x": "NaN"}


@pytest.mark.usefixtures("_stored")
def test_named_metrics_alone(connected: Trainwire) -> None:
    """Other metrics, and points without these, are left out; a name of no metric is a warning."""
    outcome = connected("metrics", "42", "--names", "acc, val/acc,lost", "--csv")
    rows = list(csv.DictReader(io.StringIO(outcome.out)))
    assert [(row["seq"], row["accuracy"], row["val/acc"]) for row in rows] == [("601", "1.0", "0.5")]
    assert "loss" not in rows[0]
    assert "no metric 'lost'" in outcome.err
    table = connected("metrics", "42", "--names", "val/acc", "--json")
    assert '"val/acc": 0.5' in table.out
    assert '"loss"' not in table.out


@pytest.mark.usefixtures("_stored")
def test_a_limit_and_csv_are_a_contradiction(connected: Trainwire) -> None:
    """The error has the remedy."""
    outcome = connected("metrics", "42", "--csv", "--limit", "3")
    assert outcome.code == 1
    assert "leave out --json and --limit" in outcome.err
