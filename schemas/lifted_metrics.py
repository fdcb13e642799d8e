"""The metrics that have columns of their own in `training_metrics`."""

from __future__ import annotations

from typing import Final

LIFTED: Final = {
    "loss": ("loss",),
    "accuracy": ("accuracy", "acc"),
    "learning_rate": ("learning_rate", "lr"),
}
"""Column -> names of metrics that are stored in it, instead of in `extra_metrics`; the first present name wins.

A new one needs a line here and a migration; existing rows keep the metric in `extra_metrics`.
"""

COLUMN_OF: Final = {name: column for column, names in LIFTED.items() for name in names if name != column}
"""Name of a metric -> the other name under which it is stored."""
