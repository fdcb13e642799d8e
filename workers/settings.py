"""The one place where the workers read the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from schemas.routes import DEFAULT_SHARDS


class WrongSettings(ValueError):  # noqa: N818 - said to operators as it stands
    """An environment variable is missing or wrong; the text names it, its value and what is allowed."""


class Settings(BaseSettings):
    """What a worker needs to know, from environment variables of the same names in capitals."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    database_url: SecretStr
    """Postgres, `postgresql://user:password@host:port/database`."""
    redis_url: SecretStr
    """Redis or Valkey, `redis://[user:password@]host:port/0` (or `rediss://`)."""
    ingest_shards: Annotated[int, Field(ge=1, le=1024)] = DEFAULT_SHARDS
    """Number of streams per kind; change it only while the streams are empty."""
    drain_slice_s: Annotated[float, Field(gt=0, le=30)] = 5.0
    """How long one work order drains before it rings again for the rest, in seconds."""
    drain_batch_bytes: Annotated[int, Field(ge=1024)] = 4 * 1024 * 1024
    """Most bytes of entries in one transaction (a single larger entry still goes through)."""
    drain_max_invalid_ratio: Annotated[float, Field(ge=0, le=1)] = 0.9
    """A batch with a larger share of invalid entries stops the drain; 1 never stops it."""
    redis_high_water: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Share of Redis' maxmemory above which trainers are told to hold back."""

    worker_deaf_after_s: Annotated[float, Field(ge=5)] = 90.0
    """A worker whose own orders do not come back for so long ends, so that its supervisor starts it anew."""

    worker_alive_file: Path | None = None
    """Touched each time a worker's own order comes back, every ten seconds or so: for health checks."""

    lost_after_s: Annotated[float, Field(ge=6, le=86_400)] = 60.0
    """A job without a heartbeat for so long is lost, if its trainer has ever sent one."""

    loki_enabled: bool = True
    """False: log rows end in Postgres."""
    loki_url: str = "http://localhost:3100"
    """Loki's own address, without a path."""
    loki_tenant: str | None = None
    """Sent as X-Scope-OrgID."""
    loki_user: str | None = None
    """For basic authentication."""
    loki_password: SecretStr = SecretStr("")
    """For basic authentication."""
    loki_linger_s: Annotated[float, Field(ge=0, le=5)] = 0.1
    """How long lines are gathered before they are pushed: many quiet jobs are not as many pushes a second."""
    mlflow_tracking_uri: str | None = None
    """The MLflow server that jobs are mirrored to, `http://host:5000`; without it nothing is mirrored."""
    mlflow_experiment: Annotated[str, Field(min_length=1, max_length=250)] = "trainwire"
    """The experiment of the mirrored runs; made where it is missing."""
    delivery_slice_s: Annotated[float, Field(gt=0, le=60)] = 10.0
    """How long one work order delivers before it orders the rest."""

    delivery_backoff_cap_s: Annotated[float, Field(ge=0.1, le=3600)] = 300.0
    """Longest wait before a store that is away is probed again."""

    trainwire_checkpoint_bucket: str | None = None
    """The bucket that trainers upload to, by the variable that they read; nothing in another is ever deleted."""
    trainwire_checkpoint_prefix: str = "checkpoints"
    """What the keys of uploaded checkpoints begin with, before the job's number."""
    checkpoint_retention: Literal["off", "dry-run", "on"] = "off"
    """Whether checkpoints of finished jobs are deleted, or in a dry run only named in the log."""
    checkpoint_keep_last: Annotated[int, Field(ge=1)] = 3
    """How many checkpoints of each job stay besides its best."""

    @model_validator(mode="after")
    def _knows_where_to_delete(self) -> Self:
        if self.checkpoint_retention != "off" and not self.trainwire_checkpoint_bucket:
            raise ValueError(
                f"CHECKPOINT_RETENTION is {self.checkpoint_retention}, but TRAINWIRE_CHECKPOINT_BUCKET is not "
                "set: name the bucket that trainers upload to"
            )
        return self

    @field_validator("loki_url")
    @classmethod
    def _is_http(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")) or "@" in value:
            raise ValueError(
                "is not an address like http://localhost:3100 (user and password: LOKI_USER, LOKI_PASSWORD)"
            )
        return value

    @field_validator("mlflow_tracking_uri")
    @classmethod
    def _is_mlflow(cls, value: str | None) -> str | None:
        if value and (not value.startswith(("http://", "https://")) or "@" in value):
            raise ValueError(
                "is not an address of a server like http://localhost:5000 (user and password: "
                "MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD); unset it to mirror nothing"
            )
        return value or None

    @field_validator("database_url")
    @classmethod
    def _is_postgres(cls, value: SecretStr) -> SecretStr:
        try:
            url = make_url(value.get_secret_value())
        except (ArgumentError, ValueError) as exc:
            raise ValueError("is not a URL like postgresql://user:password@host:5432/database") from exc
        if url.get_backend_name() not in {"postgresql", "postgres"}:
            raise ValueError(f"starts with {url.drivername}://, but only postgresql:// is understood")
        return value

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, value: SecretStr) -> SecretStr:
        if not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("is not a URL like redis://host:6379/0")
        try:
            urlsplit(value.get_secret_value()).port  # noqa: B018 - parsed when it is asked for
        except ValueError as exc:
            raise ValueError("has a port that is no number, unlike redis://host:6379/0") from exc
        return value

    def sqlalchemy_url(self) -> URL:
        """Return the Postgres URL with the driver that we use."""
        return make_url(self.database_url.get_secret_value()).set(drivername="postgresql+psycopg")


def load_settings(**overrides: Any) -> Settings:
    """Read the settings from the environment; raise `WrongSettings` that names each wrong variable."""
    try:
        return Settings(**overrides)
    except ValidationError as exc:
        raise WrongSettings("\n".join(_said(error) for error in exc.errors())) from exc


def _said(error: Any) -> str:
    if not error["loc"]:
        return str(error["msg"]).removeprefix("Value error, ")
    name = str(error["loc"][0]).upper()
    if error["type"] == "missing":
        return f"{name} is not set: run `trainwire up`, or point it to your own server"
    # A URL can hold a password, so its value is not repeated.
    value = "" if name.endswith(("_URL", "_URI")) else f" (it is {error['input']!r})"
    return f"{name} {error['msg'].removeprefix('Value error, ')}{value}"
