"""The connections and caches that the routes of one gateway share."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

from anyio import CapacityLimiter
from fastapi import Request
from redis import Redis
from sqlalchemy import Connection, Engine

from trainwire.gateway.auth.authorization import Authorizer
from trainwire.gateway.auth.token_cache import THREADS
from trainwire.gateway.callbacks.callback_streams import CallbackStreams
from trainwire.gateway.http.problems import not_configured, unknown_job
from trainwire.gateway.settings import GatewaySettings
from trainwire.gateway.trainers.job_names import JobNames
from trainwire.stores.files.s3 import S3Store, open_s3
from trainwire.stores.loki.http import LokiHttp, loki_http
from trainwire.stores.mlflow.http import MlflowApi, plain_send
from trainwire.stores.postgres.connections import open_engine, open_redis, open_stream_client
from trainwire.stores.postgres.jobs.job_lookup import Job, find_job
from trainwire.stores.rows.metric_names import MetricNames

STATEMENT_TIMEOUT_S = 20
TOKEN_STATEMENT_TIMEOUT_S = 5
READINESS_STATEMENT_TIMEOUT_S = 5
READINESS_THREADS = 2
"""Threads and database connections reserved for `/readyz`, so that it responds while other requests wait."""
CALLBACK_THREADS = 20
TRAINER_THREADS = 20
"""Threads for requests of the SDK. Like `CALLBACK_THREADS`, they are extra to AnyIO's 40 shared threads."""


@dataclass
class Resources:
    """Clients of the stores, and caches, that all routes share; each client connects at its first use."""

    settings: GatewaySettings
    engine: Engine
    readiness_engine: Engine
    token_engine: Engine
    authorizer: Authorizer
    redis: Redis
    stream_client: Redis | None
    """Client of the Redis server with the streams, or None if that is the server of `redis`."""
    callbacks: CallbackStreams
    job_names: JobNames
    metric_names: MetricNames = field(default_factory=MetricNames)
    callback_threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(CALLBACK_THREADS))
    trainer_threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(TRAINER_THREADS))
    readiness_threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(READINESS_THREADS))
    readiness_running: defaultdict[str, set[object]] = field(default_factory=lambda: defaultdict(set))
    """A mark for each check of `/readyz` that runs, by store."""

    @property
    def streams(self) -> Redis:
        """The client of the Redis server or cluster that holds the streams."""
        return self.stream_client or self.redis

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Yield a Postgres connection in autocommit mode: each statement is its own transaction."""
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            yield connection

    @property
    def loki(self) -> LokiHttp:
        """The client of Loki; raises a `ProblemError` if Loki is disabled."""
        if not self.settings.loki_enabled:
            raise not_configured("LOKI_ENABLED is false: set it to true, or use /jobs/{id}/logs")
        return loki_http(self.settings)

    @cached_property
    def mlflow(self) -> MlflowApi:
        """The client of MLflow; raises a `ProblemError` if MLFLOW_TRACKING_URI is not set."""
        if self.settings.mlflow_tracking_uri is None:
            raise not_configured("MLFLOW_TRACKING_URI is not set: set it to the address of the MLflow server")
        return MlflowApi(plain_send(self.settings.mlflow_tracking_uri, os.environ))

    @cached_property
    def s3(self) -> S3Store:
        """The S3 client that signs download URLs for the address at which browsers reach the object store.

        It uses the AWS environment variables. A signature is valid for one address only; the gateway itself sends
        no requests to the object store.
        """
        return open_s3(self.settings.gateway_s3_url)

    def close(self) -> None:
        """Close all connections."""
        for engine in (self.engine, self.token_engine, self.readiness_engine):
            engine.dispose()
        self.redis.close()
        if self.stream_client is not None:
            self.stream_client.close()


def open_resources(settings: GatewaySettings) -> Resources:
    """Create the clients and caches of a gateway; none of them connects yet."""

    def engine(name: str, most: int, timeout_s: int) -> Engine:
        return open_engine(settings, name=f"trainwire-{name}", most=most, statement_timeout_s=timeout_s)

    token_engine = engine("tokens", THREADS, TOKEN_STATEMENT_TIMEOUT_S)
    client, stream_client = open_redis(settings), open_stream_client(settings)
    return Resources(
        settings=settings,
        engine=engine("gateway", settings.gateway_db_connections, STATEMENT_TIMEOUT_S),
        readiness_engine=engine("readiness", READINESS_THREADS, READINESS_STATEMENT_TIMEOUT_S),
        token_engine=token_engine,
        authorizer=Authorizer(token_engine, is_on=settings.is_auth_on),
        redis=client,
        stream_client=stream_client,
        callbacks=CallbackStreams(stream_client or client),
        job_names=JobNames(token_engine, stream_client or client),
    )


async def resources_of(request: Request) -> Resources:
    """FastAPI dependency: return the `Resources` of the application that serves `request`."""
    found: Resources = request.app.state.resources
    return found


def job_or_404(connection: Connection, job_id: int) -> Job:
    """Return the job from Postgres; raise a `ProblemError` (404) if it is not there."""
    job = find_job(connection, job_id)
    if job is None:
        raise unknown_job(job_id)
    return job
