"""The one place where the workers read the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from trainwire.schemas.keys import DEFAULT_SHARDS
from trainwire.stores.settings import StoreSettings, read_settings


class Settings(StoreSettings):
    """What a worker needs to know, from environment variables of the same names in capitals."""

    ingest_shards: Annotated[int, Field(ge=1, le=1024)] = DEFAULT_SHARDS
    """Number of streams per kind; change it only while the streams are empty."""
    drain_slice_s: Annotated[float, Field(gt=0, le=30)] = 5.0
    """How long one work order drains before another is sent for the rest, in seconds."""
    drain_batch_bytes: Annotated[int, Field(ge=1024)] = 4 * 1024 * 1024
    """Most bytes of entries in one transaction (a single larger entry still goes through)."""
    drain_max_invalid_ratio: Annotated[float, Field(ge=0, le=1)] = 0.9
    """A batch with a larger share of invalid entries stops the drain; 1 never stops it."""
    redis_high_water: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Share of Redis' maxmemory above which trainers are told to hold back."""

    worker_deaf_after_s: Annotated[float, Field(ge=5)] = 90.0
    """A worker whose own orders do not come back for so long ends, so that its supervisor starts it anew."""

    alive_file: Path | None = None
    """For health checks: touched every ten seconds or so by a worker whose own orders come back, and by a beat."""

    lost_after_s: Annotated[float, Field(ge=6, le=86_400)] = 60.0
    """A job without a heartbeat for so long is lost, if its trainer has ever sent one."""

    loki_linger_s: Annotated[float, Field(ge=0, le=5)] = 0.1
    """How long lines are gathered before they are pushed: many quiet jobs are not as many pushes a second."""
    mlflow_experiment: Annotated[str, Field(min_length=1, max_length=250)] = "trainwire"
    """The experiment of the mirrored runs; made where it is missing."""
    delivery_slice_s: Annotated[float, Field(gt=0, le=60)] = 10.0
    """How long one work order delivers before it orders the rest."""

    delivery_backoff_cap_s: Annotated[float, Field(ge=0.1, le=3600)] = 300.0
    """Longest wait before a store that is away is probed again."""

    metrics_max_jobs: Annotated[int, Field(ge=0, le=10_000)] = 100
    """Of how many running jobs the exporter shows the newest training metrics, those heard of last first."""
    metrics_max_series: Annotated[int, Field(ge=0, le=100_000)] = 1000
    """How many values of training metrics the exporter shows in all."""

    checkpoint_retention: Literal["off", "dry-run", "on"] = "off"
    """Whether checkpoints of finished jobs are deleted, or in a dry run only named in the log."""
    checkpoint_keep_last: Annotated[int, Field(ge=1)] = 3
    """How many checkpoints of each job stay besides its best."""

    checkpoint_remove_superseded: Literal["off", "dry-run", "on"] = "on"
    """Whether an upload is deleted, also of a job at work, once a newer one in its place is verified."""
    checkpoint_orphan_days: Annotated[int, Field(ge=1, le=3650)] = 7
    """Where checkpoint_retention is on: how long after the end of a job unrecorded uploads of it stay."""

    log_retention_days: Annotated[int, Field(ge=1, le=36_500)] | None = None
    """Log rows of finished jobs that are older are removed; unset, none is."""
    metric_retention_days: Annotated[int, Field(ge=1, le=36_500)] | None = None
    """Metric rows of finished jobs that are older are removed; unset, none is."""
    row_retention: Literal["dry-run", "on"] = "dry-run"
    """Whether old rows are removed, or only counted in the log."""

    @model_validator(mode="after")
    def _knows_where_to_delete(self) -> Self:
        if self.checkpoint_retention != "off" and not self.trainwire_checkpoint_bucket:
            raise ValueError(
                f"CHECKPOINT_RETENTION is {self.checkpoint_retention}, but TRAINWIRE_CHECKPOINT_BUCKET is not "
                "set: name the bucket that trainers upload to"
            )
        return self


def load_settings(**overrides: Any) -> Settings:
    """Read the settings from the environment; raise `WrongSettings` that names each wrong variable."""
    return read_settings(Settings, **overrides)
