"""Compares parameters and metrics of jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from trainwire.client.records import JobInfo

MOST_JOBS: Final = 20


def final_metrics(job: JobInfo) -> dict[str, Any]:
    """Return the final metrics that the trainer reported, else the newest values."""
    return {**job.last_metrics, **(job.final_metrics or {})}


def flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return nested parameters as one map, with dots in the names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{path}{name}.") if isinstance(value, dict) and value else {f"{path}{name}": value}
    return found


def side_by_side(maps: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return for each name its value in each map, None where a map lacks it; names in their first order."""
    names = dict.fromkeys(name for each in maps for name in each)
    return {name: [each.get(name) for each in maps] for name in names}


def differs(values: Sequence[Any]) -> bool:
    """Return whether the values of one name are not all the same; a missing one differs."""
    return len({repr(value) for value in values}) > 1
