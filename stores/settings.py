"""Settings that workers and gateway share: the URLs of the stores, read from environment variables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from trainwire.schemas.checkpoint_keys import SCHEME
from trainwire.schemas.streams.redis_urls import is_port, port_problem, redis_url_problem, shown_url
from trainwire.schemas.streams.urls import cluster_nodes, cluster_tls, is_cluster


class WrongSettings(ValueError):  # noqa: N818 - shown to users
    """An environment variable is missing or invalid; the error text names it, its value and the valid values."""


class StoreSettings(BaseSettings):
    """The URLs, credentials and options of the stores, read from environment variables.

    A variable has the name of its field in capitals.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    database_url: SecretStr
    """Postgres: `postgresql://user:password@host:port/database`.

    Several servers of which one accepts writes:
    `postgresql://user:password@h1:5432,h2:5432/database?target_session_attrs=read-write`.
    """
    database_prepared_statements: bool = True
    """False disables prepared statements, for a pooler that gives each transaction another connection."""
    redis_url: SecretStr
    """Redis or Valkey: `redis://[user:password@]host:port/0`, or `rediss://` with TLS."""
    streams_url: SecretStr | None = None
    """The Redis of the streams, if it is not `redis_url`, which is always the broker of the Celery workers.

    It may be a single server, or a Redis Cluster: `redis+cluster://[user:password@]host:port[,host:port...]`, or
    `rediss+cluster://` with TLS.
    """
    loki_enabled: bool = True
    """False: log rows are stored in Postgres and not delivered to Loki."""
    loki_url: str = "http://localhost:3100"
    """URL of Loki itself, without a path."""
    loki_tenant: str | None = None
    """Tenant of a multi-tenant Loki, sent in the header X-Scope-OrgID."""
    loki_user: str | None = None
    """User for basic authentication; None disables it."""
    loki_password: SecretStr = SecretStr("")
    """Password for basic authentication."""
    loki_ca_file: Path | None = None
    """PEM file of the CA that signed Loki's certificate, if the system does not trust it."""
    mlflow_tracking_uri: str | None = None
    """URL of the MLflow server to which jobs are copied, `http://host:5000`; None disables the copies."""

    trainwire_checkpoint_bucket: str | None = None
    """Bucket to which trainers upload; they read the same variable. Files in other buckets are never deleted."""
    trainwire_checkpoint_prefix: str = "checkpoints"
    """Prefix of the keys of uploaded checkpoints; the job's number follows."""
    checkpoint_lend_also: str = ""
    """Further prefixes whose files workers verify and the gateway serves, separated by commas.

    Each is `s3://bucket/` or `s3://bucket/folder/`.
    """

    sentry_dsn: SecretStr | None = None
    """Address of a Sentry project to which unexpected errors are reported; None reports none."""
    trace_slow_s: Annotated[float, Field(ge=0, le=3600)] = 1.0
    """Shortest duration in seconds of the spans that are exported, if traces are; with 0 all are."""

    @field_validator("checkpoint_lend_also")
    @classmethod
    def _are_prefixes(cls, value: str) -> str:
        for place in filter(None, map(str.strip, value.split(","))):
            if not place.startswith(SCHEME) or place[len(SCHEME) :].startswith(("/", " ")) or place == SCHEME:
                raise ValueError(f"names {place!r}, which is no place like s3://bucket/ or s3://bucket/folder/")
        return value

    @field_validator("loki_url")
    @classmethod
    def _is_http(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")) or "@" in value:
            raise ValueError(
                "is not an address like http://localhost:3100 (user and password: LOKI_USER, LOKI_PASSWORD)"
            )
        return value

    @field_validator("loki_ca_file")
    @classmethod
    def _is_there(cls, value: Path | None) -> Path | None:
        if value is not None:
            _check_readable(value)
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
        if (port := wrong_port(value.get_secret_value())) is not None:
            raise ValueError(f"{port_problem(port)}: write postgresql://user:password@host:5432/database")
        try:
            url = parse_postgres_url(value.get_secret_value())
        except (ArgumentError, ValueError) as exc:
            raise ValueError("is not a URL like postgresql://user:password@host:5432/database") from exc
        if url.get_backend_name() != "postgresql":
            raise ValueError(f"starts with {url.drivername}://, but only postgresql:// is understood")
        return value

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, value: SecretStr) -> SecretStr:
        url = value.get_secret_value()
        if (problem := redis_url_problem(url)) is not None:
            raise ValueError(f"{problem} (it is {shown_url(url)!r})")
        for name in parse_qs(urlsplit(url).query).get("ssl_ca_certs", []):
            _check_readable(Path(name), "names ssl_ca_certs, which ")
        return value

    @field_validator("streams_url")
    @classmethod
    def _has_streams(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value():
            return None
        if not is_cluster(value.get_secret_value()):
            return cls._is_redis(value)
        try:
            cluster_nodes(value.get_secret_value())
        except ValueError as exc:
            shown = shown_url(value.get_secret_value())
            raise ValueError(f"{exc}: write redis+cluster://host:6379,host:6379 (it is {shown!r})") from exc
        if ca := cluster_tls(value.get_secret_value()).get("ssl_ca_certs"):
            _check_readable(Path(str(ca)), "names ssl_ca_certs, which ")
        return value

    @property
    def streams_address(self) -> str:
        """The URL of the Redis that stores the streams."""
        return (self.streams_url or self.redis_url).get_secret_value()

    def sqlalchemy_url(self) -> URL:
        """Return the Postgres URL for SQLAlchemy with the driver psycopg."""
        return parse_postgres_url(self.database_url.get_secret_value())


def _check_readable(path: Path, which: str = "") -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as exc:
        raise ValueError(f"{which}cannot be read: {path}: {exc.strerror}") from exc


SettingsT = TypeVar("SettingsT", bound=BaseSettings)


def read_settings(kind: type[SettingsT], **overrides: Any) -> SettingsT:
    """Read settings from the environment; `overrides` (field -> value) take precedence.

    Raises `WrongSettings`, whose text names each variable that is missing or invalid.
    """
    try:
        return kind(**overrides)
    except ValidationError as exc:
        raise WrongSettings("\n".join(_message(error) for error in exc.errors())) from exc


def _message(error: Any) -> str:
    if not error["loc"]:
        return str(error["msg"]).removeprefix("Value error, ")
    name = str(error["loc"][0]).upper()
    if error["type"] == "missing":
        return f"{name} is not set: run `trainwire up`, or point it to your own server"
    # A URL can hold a password, so its value is not repeated.
    value = "" if name.endswith(("_URL", "_URI")) else f" (it is {error['input']!r})"
    return f"{name} {error['msg'].removeprefix('Value error, ')}{value}"


DEFAULT_PORT: Final = 5432
_URL: Final = re.compile(r"(?P<scheme>[\w+]+)://(?:(?P<user>[^/?]*)@)?(?P<hosts>[^/?@]*)(?P<rest>.*)")
_HOST: Final = re.compile(r"(?:\[(?P<address>[^\]]+)\]|(?P<name>[^:\[\]]*))(?::(?P<port>\d*))?")


def parse_postgres_url(text: str) -> URL:
    """Parse DATABASE_URL: one server, or several as in libpq (`postgresql://user:password@h1:5432,h2:5433/db`).

    Several servers become the query parameters `host` and `port` of the returned URL, as SQLAlchemy expects.
    Raises `ValueError` or SQLAlchemy's `ArgumentError` for an invalid URL.
    """
    parts = _URL.fullmatch(text)
    if parts is None or "," not in parts["hosts"]:
        return _with_driver(make_url(text))
    found = [_HOST.fullmatch(host) for host in parts["hosts"].split(",")]
    servers = [(host["address"] or host["name"], host["port"]) for host in found if host is not None]
    if len(servers) < len(found):
        raise ValueError("several hosts are h1:5432,h2:5433")
    user = "" if parts["user"] is None else f"{parts['user']}@"
    rest = parts["rest"] if parts["rest"].startswith("/") else f"/{parts['rest']}"
    url = make_url(f"{parts['scheme']}://{user}{rest}")
    hosts = {
        "host": ",".join(name or "localhost" for name, _ in servers),
        "port": ",".join(port or str(DEFAULT_PORT) for _, port in servers),
    }
    return _with_driver(url.update_query_dict(hosts))


def wrong_port(text: str) -> str | None:
    """Return the first invalid port of a URL with `@`, for the error text; None if there is none.

    Without `@`, the text after a colon may be a password, which must not be shown.
    """
    _, has_user, rest = text.rpartition("@")
    hosts = re.split("[/?]", rest)[0] if has_user else ""
    ports = [
        host.rpartition("]")[2].partition(":")[2] for host in hosts.split(",") if "[" not in host or "]" in host
    ]
    return next((port for port in ports if port and not is_port(port)), None)


def shown_servers(url: URL) -> str:
    """Format the `host:port` of each server of a parsed URL, separated by commas, without the password."""
    hosts, ports = url.query.get("host"), url.query.get("port")
    if hosts is None:
        return f"{url.host or 'localhost'}:{url.port or DEFAULT_PORT}"
    names = hosts.split(",") if isinstance(hosts, str) else list(hosts)
    numbers = ports.split(",") if isinstance(ports, str) else list(ports or ())
    if not numbers:  # ?host=h1:5432&host=h2:5433, or the folder of a socket
        return ", ".join(names)
    return ", ".join(f"{name}:{port}" for name, port in zip(names, numbers, strict=False))


def _with_driver(url: URL) -> URL:
    return (
        url.set(drivername="postgresql+psycopg") if url.get_backend_name() in {"postgresql", "postgres"} else url
    )
