"""Functions to compare the parameters and metrics of several jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from trainwire.client.records import JobInfo

MOST_JOBS: Final = 20


def final_metrics(job: JobInfo) -> dict[str, Any]:
    """Return metric -> value: the final value that the trainer reported, otherwise the newest one."""
    return {**job.last_metrics, **(job.final_metrics or {})}


def flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Flatten nested parameters to one level; `{"a": {"b": 1}}` becomes `{"a.b": 1}`.

    `path` is put before each name.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{path}{name}.") if isinstance(value, dict) and value else {f"{path}{name}": value}
    return found


def side_by_side(maps: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return name -> list of its values, one from each map, None if a map lacks the name.

    The names are in the order in which they first occur.
    """
    names = dict.fromkeys(name for each in maps for name in each)
    return {name: [each.get(name) for each in maps] for name in names}


def differs(values: Sequence[Any]) -> bool:
    """Return whether `values`, the values of one name in several jobs, are not all equal.

    None, for a job without the value, differs from any other value.
    """
    return len({repr(value) for value in values}) > 1
