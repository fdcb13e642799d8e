"""Sends runs of MLflow to the launcher: the first run's values as the job's, others with a prefix."""

from __future__ import annotations

import os
from typing import Any

from . import channel

BY = "mlflow"
PARENT_TAG = "mlflow.parentRunId"
Fields = dict[str, Any]


def place_of(runs: dict[str, Fields], name: str, tags: dict[str, str]) -> Fields:
    """Return the prefix of a new run's metric names and the rank of the process, as fields of the run.

    The first run of a rank has no prefix. A nested run also has the prefix of its parent; a number is added to a
    prefix that another run has.
    """
    rank = " ".join(f"{key}={value}" for key, value in sorted(os.environ.items()) if key in _RANKS)
    same_rank = [run for run in runs.values() if run["rank"] == rank]
    if not same_rank:
        return {"prefix": "", "rank": rank}
    parent = runs.get(tags.get(PARENT_TAG, ""), {}).get("prefix", "")
    used = {run["prefix"] for run in same_rank}
    prefix, number = f"{parent}{name}/", 1
    while prefix in used:
        number += 1
        prefix = f"{parent}{name}-{number}/"
    return {"prefix": prefix, "rank": rank}


_RANKS = frozenset(("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"))
"""Variables in which launchers of ranks state the rank."""


def started(run_id: str, run: Fields) -> None:
    """Report a new run."""
    values = f", whose values are below {run['prefix']}" if run["prefix"] else ""
    _log(f"MLflow run {run['run_name']} ({run_id}) started{values}")


def ended(run_id: str, run: Fields) -> None:
    """Report the end of a run. The job ends with its command."""
    _log(f"MLflow run {run['run_name']} ({run_id}) ended: {run['status']}")


def values(run: Fields, metrics: list[Any]) -> None:
    """Report values, with one record for those of the same step and time."""
    steps: dict[tuple[int, int], dict[str, float]] = {}
    for metric in metrics:
        at = int(metric.step), int(metric.timestamp)
        steps.setdefault(at, {})[f"{run['prefix']}{metric.key}"] = float(metric.value)
    for (step, ts), numbers in steps.items():
        channel.send({"type": "metrics", "by": BY, "step": step, "ts": ts * 1_000_000, "values": numbers})


def params(run: Fields, new: dict[str, str]) -> None:
    """Report parameters."""
    if new:
        named = {f"{run['prefix']}{name}": value for name, value in new.items()}
        channel.send({"type": "params", "by": BY, "values": named})


def tags(run: Fields, new: dict[str, str]) -> None:
    """Report the tags of the job's run that the training has set itself."""
    own = {name: value for name, value in new.items() if not name.startswith("mlflow.")}
    if own and not run["prefix"]:
        channel.send({"type": "tags", "by": BY, "values": own})


def _log(text: str) -> None:
    channel.send({"type": "log", "by": BY, "text": text})
