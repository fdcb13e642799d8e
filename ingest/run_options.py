"""The arguments of `Run`, for type checkers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict


class RunOptions(TypedDict, total=False):
    """The arguments of `Run` that its subclasses and `from_env` pass on unchanged."""

    total_epochs: int | None
    params: Mapping[str, Any] | None
    tags: Mapping[str, Any] | None
    project: str | None
    group: str | None
    attempt: int | None
    rank: int | None
    world_size: int | None
    stall_after_s: float | None
    mlflow_run_id: str | None
    resume_from_step: int | None
    parent: int | None
    fork_step: int | None
    strict: bool | None
    redis_url: str | None
    url: str | None
