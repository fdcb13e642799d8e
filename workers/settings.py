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
    """Seconds after which a drain begins no further transaction; another order is sent for remaining entries."""
    drain_batch_bytes: Annotated[int, Field(ge=1024)] = 4 * 1024 * 1024
    """Maximum estimated memory in bytes of the entries of one transaction; the last entry may exceed it."""
    drain_max_invalid_ratio: Annotated[float, Field(ge=0, le=1)] = 0.9
    """If a larger share of 100 or more new entries in a batch is invalid, the drain stops; with 1 never."""
    redis_high_water: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Share of Redis' maxmemory above which trainers keep their messages in their spools."""

    worker_deaf_after_s: Annotated[float, Field(ge=5)] = 90.0
    """A worker whose orders to itself are not executed for this time exits, so that its supervisor restarts it."""

    alive_file: Path | None = None
    """File for health checks: beat, and workers that receive their own orders, touch it every few seconds."""

    lost_after_s: Annotated[float, Field(ge=6, le=86_400)] = 60.0
    """Seconds without heartbeats after which a job gets the status `lost`."""

    loki_linger_s: Annotated[float, Field(ge=0, le=5)] = 0.1
    """Seconds for which a delivery collects lines before a push, so that many quiet jobs cause fewer pushes."""
    mlflow_experiment: Annotated[str, Field(min_length=1, max_length=250)] = "trainwire"
    """Name of the MLflow experiment for the runs that workers create; it is created if it does not exist."""
    delivery_slice_s: Annotated[float, Field(gt=0, le=60)] = 10.0
    """Seconds after which a delivery or verification begins nothing new; another order is sent for the rest."""

    delivery_backoff_cap_s: Annotated[float, Field(ge=0.1, le=3600)] = 300.0
    """Longest delay in seconds of our own choice before an unavailable store or destination is tried again."""

    alert_rules: Path | None = None
    """Absolute path of the file with the alert rules; if unset, no alerts are sent."""

    metrics_max_jobs: Annotated[int, Field(ge=0, le=10_000)] = 100
    """Maximum number of running jobs whose metrics the exporter shows: those with the newest messages."""
    metrics_max_series: Annotated[int, Field(ge=0, le=100_000)] = 1000
    """Maximum number of values of training metrics that the exporter shows."""

    checkpoint_retention: Literal["off", "dry-run", "on"] = "off"
    """Whether surplus checkpoints of finished jobs are deleted; in a dry run they are only logged."""
    checkpoint_keep_last: Annotated[int, Field(ge=1)] = 3
    """Number of last checkpoints to keep for each finished job besides its best one."""

    checkpoint_remove_superseded: Literal["off", "dry-run", "on"] = "on"
    """Whether an upload is deleted once a newer one that replaces it is verified, also while the job runs."""
    checkpoint_orphan_days: Annotated[int, Field(ge=1, le=3650)] = 7
    """Days after the end of a job until uploads without a row are deleted; only with checkpoint_retention on."""

    log_retention_days: Annotated[int, Field(ge=1, le=36_500)] | None = None
    """Number of days after which log rows of finished jobs are deleted; if unset, they are kept."""
    metric_retention_days: Annotated[int, Field(ge=1, le=36_500)] | None = None
    """Number of days after which metric rows of finished jobs are deleted; if unset, they are kept."""
    row_retention: Literal["dry-run", "on"] = "dry-run"
    """Whether old rows are deleted; in a dry run they are only counted in the log."""

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
