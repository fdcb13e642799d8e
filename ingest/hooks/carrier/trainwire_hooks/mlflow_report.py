"""Sends the values that the training logs to runs in MLflow to the launcher, which adds them to the job.

Metric and parameter names of the first run in MLflow are unchanged; those of later runs get a prefix.
"""

from __future__ import annotations

import os
from typing import Any

from . import channel

BY = "mlflow"
PARENT_TAG = "mlflow.parentRunId"
Fields = dict[str, Any]


def place_of(runs: dict[str, Fields], name: str, tags: dict[str, str]) -> Fields:
    """Return a dict with the rank of this process (`rank`) and the prefix of metric names (`prefix`).

    `runs` are the earlier runs in MLflow of the job; `name` and `tags` are those of the new one. The prefix is
    empty for the first run of a rank. For a later run it is `{name}/`, or `{name}-2/` and so on if that is already
    in use; for a nested run, the prefix of its parent is put before the name.
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
"""Environment variables in which distributed launchers give the rank."""


def started(run_id: str, run: Fields) -> None:
    """Add a log line to the job: a run in MLflow has started."""
    values = f", whose values are below {run['prefix']}" if run["prefix"] else ""
    _log(f"MLflow run {run['run_name']} ({run_id}) started{values}")


def ended(run_id: str, run: Fields) -> None:
    """Add a log line to the job: a run in MLflow has ended. The job itself ends with its command."""
    _log(f"MLflow run {run['run_name']} ({run_id}) ended: {run['status']}")


def values(run: Fields, metrics: list[Any]) -> None:
    """Send metric values of a run in MLflow to the launcher, those of the same step and time together."""
    steps: dict[tuple[int, int], dict[str, float]] = {}
    for metric in metrics:
        at = int(metric.step), int(metric.timestamp)
        steps.setdefault(at, {})[f"{run['prefix']}{metric.key}"] = float(metric.value)
    for (step, ts), numbers in steps.items():
        channel.send({"type": "metrics", "by": BY, "step": step, "ts": ts * 1_000_000, "values": numbers})


def params(run: Fields, new: dict[str, str]) -> None:
    """Send new parameters of a run in MLflow to the launcher, with the prefix of the run."""
    if new:
        named = {f"{run['prefix']}{name}": value for name, value in new.items()}
        channel.send({"type": "params", "by": BY, "values": named})


def tags(run: Fields, new: dict[str, str]) -> None:
    """Send tags that the training has set to the launcher, if the run in MLflow is the first one of its rank.

    MLflow's own tags (`mlflow.*`) are left out.
    """
    own = {name: value for name, value in new.items() if not name.startswith("mlflow.")}
    if own and not run["prefix"]:
        channel.send({"type": "tags", "by": BY, "values": own})


def _log(text: str) -> None:
    channel.send({"type": "log", "by": BY, "text": text})
