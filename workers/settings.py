"""The settings of the workers. No other module of the workers reads the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from trainwire.schemas.keys import DEFAULT_SHARDS
from trainwire.stores.settings import StoreSettings, read_settings


class Settings(StoreSettings):
    """The settings of a worker. Each is read from the environment variable of its name in capitals."""

    ingest_shards: Annotated[int, Field(ge=1, le=1024)] = DEFAULT_SHARDS
    """Number of streams per kind; change it only while the streams are empty."""
    drain_slice_s: Annotated[float, Field(gt=0, le=30)] = 5.0
    """Time slice of one work order to drain, in seconds; another one is sent for the rest."""
    drain_batch_bytes: Annotated[int, Field(ge=1024)] = 4 * 1024 * 1024
    """Limit in bytes of the entries of one transaction; a single larger entry is stored all the same."""
    drain_max_invalid_ratio: Annotated[float, Field(ge=0, le=1)] = 0.9
    """A batch with a larger share of invalid entries stops the drain; 1 never stops it."""
    redis_high_water: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Share of Redis' maxmemory above which trainers hold their messages back."""

    worker_deaf_after_s: Annotated[float, Field(ge=5)] = 90.0
    """A worker that does not receive its own orders for this time exits, so that its supervisor restarts it."""

    alive_file: Path | None = None
    """For health checks: touched about every ten seconds by a worker that receives its own orders, and by beat."""

    lost_after_s: Annotated[float, Field(ge=6, le=86_400)] = 60.0
    """A job whose heartbeats ceased for this time is lost."""

    loki_linger_s: Annotated[float, Field(ge=0, le=5)] = 0.1
    """Time for which lines are collected before a push, so that many quiet jobs do not cause as many pushes."""
    mlflow_experiment: Annotated[str, Field(min_length=1, max_length=250)] = "trainwire"
    """The experiment of the mirrored runs; created if it is missing."""
    delivery_slice_s: Annotated[float, Field(gt=0, le=60)] = 10.0
    """Time slice of one work order to deliver; another one is sent for the rest."""

    delivery_backoff_cap_s: Annotated[float, Field(ge=0.1, le=3600)] = 300.0
    """Longest wait before an unavailable store is probed again."""

    alert_rules: Path | None = None
    """The file of the alert rules, an absolute path; unset: no alerts are sent."""

    metrics_max_jobs: Annotated[int, Field(ge=0, le=10_000)] = 100
    """Number of running jobs whose newest training metrics the exporter shows, most recent messages first."""
    metrics_max_series: Annotated[int, Field(ge=0, le=100_000)] = 1000
    """Number of training metrics that the exporter shows at most."""

    checkpoint_retention: Literal["off", "dry-run", "on"] = "off"
    """Whether checkpoints of finished jobs are deleted, or in a dry run only logged."""
    checkpoint_keep_last: Annotated[int, Field(ge=1)] = 3
    """Number of checkpoints of each job that are kept besides its best."""

    checkpoint_remove_superseded: Literal["off", "dry-run", "on"] = "on"
    """Whether an upload, also of a running job, is deleted once a newer one under its name is verified."""
    checkpoint_orphan_days: Annotated[int, Field(ge=1, le=3650)] = 7
    """With checkpoint_retention on: days after the end of a job until its unrecorded uploads are deleted."""

    log_retention_days: Annotated[int, Field(ge=1, le=36_500)] | None = None
    """Older log rows of finished jobs are removed; if unset, none are."""
    metric_retention_days: Annotated[int, Field(ge=1, le=36_500)] | None = None
    """Older metric rows of finished jobs are removed; if unset, none are."""
    row_retention: Literal["dry-run", "on"] = "dry-run"
    """Whether old rows are removed, or in a dry run only counted in the log."""

    @field_validator("alert_rules", mode="before")
    @classmethod
    def _is_absolute(cls, value: str | Path | None) -> Path | None:
        if value is None or str(value) == "":
            return None
        if not Path(value).is_absolute():
            raise ValueError("is not an absolute path like /etc/trainwire/alerts.toml")
        return Path(value)

    @model_validator(mode="after")
    def _knows_where_to_delete(self) -> Self:
        if self.checkpoint_retention != "off" and not self.trainwire_checkpoint_bucket:
            raise ValueError(
                f"CHECKPOINT_RETENTION is {self.checkpoint_retention}, but TRAINWIRE_CHECKPOINT_BUCKET is not "
                "set: name the bucket that trainers upload to"
            )
        return self


def load_settings(**overrides: Any) -> Settings:
    """Read the settings from the environment. Raises `WrongSettings`, which names each wrong variable."""
    return read_settings(Settings, **overrides)
