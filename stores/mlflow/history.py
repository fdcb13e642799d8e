"""The points of a run's metrics in MLflow, page by page: a run may have millions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from trainwire.stores.mlflow.http import MlflowApi
from trainwire.stores.mlflow.runs import MetricPoint, get_metric_page

MOST_REQUESTS: Final = 50
"""To MLflow, for one page: one for each metric of it."""


class HistoryPlace(msgspec.Struct, frozen=True):
    """Where a page begins: at a metric, and there at MLflow's own token, or at its first point."""

    name: str
    token: str | None = None


class HistoryPage(msgspec.Struct, frozen=True, kw_only=True):
    """Points by metric; `next` is where the following page begins, None after the last.

    `more_metrics` is how many metrics have no point here or before.
    """

    metrics: dict[str, list[MetricPoint]]
    more_metrics: int
    next: HistoryPlace | None


def read_page(
    api: MlflowApi, run_id: str, names: Sequence[str], limit: int, place: HistoryPlace | None = None
) -> HistoryPage:
    """Return at most `limit` points of these metrics together, from a place of an earlier page on.

    The place's name is one of `names`. Raises what the API raises.
    """
    first = 0 if place is None else names.index(place.name)
    token = None if place is None else place.token
    metrics: dict[str, list[MetricPoint]] = {}
    for number, name in enumerate(names[first:], first):
        if not limit or len(metrics) == MOST_REQUESTS:
            return HistoryPage(metrics=metrics, more_metrics=len(names) - number, next=HistoryPlace(name))
        metrics[name], token = get_metric_page(api, run_id, name, limit, token)
        limit -= len(metrics[name])
        if token is not None:
            more = len(names) - number - 1
            return HistoryPage(metrics=metrics, more_metrics=more, next=HistoryPlace(name, token))
    return HistoryPage(metrics=metrics, more_metrics=0, next=None)
