"""Names of the metrics, such as `loss`, that have their own columns in the table `training_metrics`."""

from __future__ import annotations

from typing import Final

LIFTED: Final = {
    "loss": ("loss",),
    "accuracy": ("accuracy", "acc"),
    "learning_rate": ("learning_rate", "lr"),
}
"""Column of training_metrics -> names of the metrics that it stores; `extra_metrics` stores all other metrics.

If a point has several of the names, the first in this order is stored in the column. A new column needs a line
here and a migration; existing rows keep the metric in `extra_metrics`.
"""

COLUMN_OF: Final = {name: column for column, names in LIFTED.items() for name in names if name != column}
"""Synonym of a metric, such as `lr` -> the column that stores it, `learning_rate`."""
