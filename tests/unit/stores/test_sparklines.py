"""A sparkline of a job: the choice of its metric, rows and values."""

from __future__ import annotations

import pytest

from trainwire.stores.rows.sparklines import MOST_VALUES, SAMPLES, main_metric, spread, thinned


@pytest.mark.parametrize(
    ("names", "name"),
    [
        (["accuracy", "loss", "a"], "loss"),
        (["val_loss", "accuracy"], "val_loss"),
        (["system/cpu", "zeta", "beta"], "beta"),
        (["system/cpu"], None),
        ([], None),
    ],
)
def test_the_most_important_metric_is_shown(names: list[str], name: str | None) -> None:
    """A loss is preferred to an accuracy, and that to other metrics by name; system metrics are never shown."""
    assert main_metric(names) == name


@pytest.mark.parametrize("last_seq", [0, 1, SAMPLES, SAMPLES + 1, 1_000_000, 2**62])
def test_rows_are_spread_over_the_whole_job(last_seq: int) -> None:
    """Of any number of rows few are read, each once, among them the first and the last."""
    seqs = spread(1, last_seq, SAMPLES)
    assert len(seqs) == len(set(seqs)) == min(last_seq, SAMPLES)
    assert seqs == sorted(seqs)
    assert not seqs or (seqs[0], seqs[-1]) == (1, last_seq)


def test_values_are_thinned_evenly() -> None:
    """At most forty values remain, the first and the last among them."""
    values = [float(number) for number in range(1000)]
    kept = thinned(values)
    assert (len(kept), kept[0], kept[-1]) == (MOST_VALUES, 0.0, 999.0)
    assert thinned(values[:40]) == values[:40]
