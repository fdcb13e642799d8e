"""The arguments of `Run`, for type checkers: functions that pass them on accept the same names and types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from ingest.settings import TrainerSettings


class RunOptions(TypedDict, total=False):
    """The keyword arguments of `Run`."""

    total_epochs: int | None
    params: Mapping[str, Any] | None
    tags: Mapping[str, Any] | None
    attempt: int | None
    rank: int | None
    world_size: int | None
    stall_after_s: float | None
    mlflow_run_id: str | None
    strict: bool | None
    redis_url: str | None
    settings: TrainerSettings | None


class JobOptions(RunOptions, total=False):
    """All arguments of `Run`."""

    job_id: int
    name: str | None
