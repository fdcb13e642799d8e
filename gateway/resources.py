"""What the routes of one gateway work with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

from anyio import CapacityLimiter
from fastapi import Request
from redis import Redis
from sqlalchemy import Connection, Engine

from trainwire.gateway.auth.authorization import Guard
from trainwire.gateway.auth.token_cache import THREADS
from trainwire.gateway.callbacks.callbacks import CallbackQueue
from trainwire.gateway.http.problems import not_configured, unknown_job
from trainwire.gateway.settings import GatewaySettings
from trainwire.stores.files.s3 import S3Store, open_s3
from trainwire.stores.loki.http import LokiHttp, loki_http
from trainwire.stores.mlflow.http import MlflowApi, plain_send
from trainwire.stores.postgres.connections import open_engine, open_redis, open_stream_client
from trainwire.stores.postgres.jobs import Job, find_job
from trainwire.stores.rows.metric_names import MetricNames

STATEMENT_TIMEOUT_S = 20
TOKEN_STATEMENT_TIMEOUT_S = 5
READINESS_STATEMENT_TIMEOUT_S = 5
READINESS_THREADS = 2
"""And as many connections: readers that wait do not make a gateway unready."""
CALLBACK_THREADS = 20
"""Besides the forty that AnyIO has for all who read."""


@dataclass
class Resources:
    """Connections, each made when it is first asked for, and what is remembered between requests."""

    settings: GatewaySettings
    engine: Engine
    token_engine: Engine
    readiness_engine: Engine
    redis: Redis
    guard: Guard
    callbacks: CallbackQueue
    stream_client: Redis | None = None
    """Of the server that has the streams, if another than that of `redis`."""
    metric_names: MetricNames = field(default_factory=MetricNames)
    callback_threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(CALLBACK_THREADS))
    readiness_threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(READINESS_THREADS))

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give a connection, each statement its own transaction."""
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            yield connection

    @property
    def loki(self) -> LokiHttp:
        """The connections to Loki; a problem where log rows end in Postgres."""
        if not self.settings.loki_enabled:
            raise not_configured("LOKI_ENABLED is false: log rows end in Postgres")
        return loki_http(self.settings)

    @cached_property
    def mlflow(self) -> MlflowApi:
        """The API of MLflow; a problem where there is none."""
        if self.settings.mlflow_tracking_uri is None:
            raise not_configured("MLFLOW_TRACKING_URI is not set: name the MLflow server")
        return MlflowApi(plain_send(self.settings.mlflow_tracking_uri, os.environ))

    @cached_property
    def s3(self) -> S3Store:
        """The object store that the standard AWS variables name, at the address that browsers reach it by.

        A signature holds for the address that it was made for; the gateway itself asks the store nothing.
        """
        return open_s3(self.settings.gateway_s3_url)

    def close(self) -> None:
        """Drop all connections."""
        self.engine.dispose()
        self.token_engine.dispose()
        self.readiness_engine.dispose()
        self.redis.close()
        if self.stream_client is not None:
            self.stream_client.close()


def open_resources(settings: GatewaySettings) -> Resources:
    """Return what a gateway works with; nothing is connected yet."""
    engine = open_engine(
        settings,
        name="trainwire-gateway",
        most=settings.gateway_db_connections,
        statement_timeout_s=STATEMENT_TIMEOUT_S,
    )
    token_engine = open_engine(
        settings, name="trainwire-tokens", most=THREADS, statement_timeout_s=TOKEN_STATEMENT_TIMEOUT_S
    )
    readiness_engine = open_engine(
        settings,
        name="trainwire-readiness",
        most=READINESS_THREADS,
        statement_timeout_s=READINESS_STATEMENT_TIMEOUT_S,
    )
    guard = Guard(token_engine, is_on=settings.is_auth_on)
    client, streams = open_redis(settings), open_stream_client(settings)
    callbacks = CallbackQueue(streams or client)
    return Resources(settings, engine, token_engine, readiness_engine, client, guard, callbacks, streams)


async def resources(request: Request) -> Resources:
    """Return the resources of the gateway that serves this request."""
    found: Resources = request.app.state.resources
    return found


def known_job(connection: Connection, job_id: int) -> Job:
    """Return the job; a problem where no message of it has been stored."""
    job = find_job(connection, job_id)
    if job is None:
        raise unknown_job(job_id)
    return job
