"""The feed of a gateway, whose first frames are the documents that its HTTP side answers with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, Engine, select

from trainwire.gateway.documents.documents import JobDetail, JobItem
from trainwire.gateway.documents.job_documents import job_detail, job_items
from trainwire.gateway.feed.live import Feed
from trainwire.gateway.settings import GatewaySettings
from trainwire.schemas.tables import training_jobs
from trainwire.stores.postgres.columns import MOST_LISTED_NAMES, job_columns
from trainwire.stores.postgres.connections import open_engine
from trainwire.stores.postgres.jobs import Job
from trainwire.stores.rows.metric_names import MetricNames

FEED_CONNECTIONS: Final = 4
TIMEOUT_S: Final = 20


class JobDocuments:
    """Jobs as lists and as their own pages show them."""

    def __init__(self, names: MetricNames, mlflow_uri: str | None) -> None:
        self._names = names
        self._mlflow_uri = mlflow_uri

    def detail(self, connection: Connection, job_id: int) -> JobDetail | None:
        """Return one job; None where no message of it has been stored."""
        return job_detail(connection, job_id, self._names, self._mlflow_uri)

    def items(self, connection: Connection, job_ids: Sequence[int]) -> list[JobItem]:
        """Return these jobs, the newest first."""
        table = training_jobs
        wanted = select(*job_columns(Job, table, MOST_LISTED_NAMES)).where(table.c.id.in_(job_ids))
        newest_first = wanted.order_by(table.c.created_at.desc(), table.c.id.desc())
        return job_items(connection, [Job(**row) for row in connection.execute(newest_first).mappings()])


def open_feed_engine(settings: GatewaySettings) -> Engine:
    """Return connections of the feed's own: requests that take long must not hold it up."""
    return open_engine(settings, name="trainwire-feed", most=FEED_CONNECTIONS, statement_timeout_s=TIMEOUT_S)


def feed_of(settings: GatewaySettings, engine: Engine, names: MetricNames) -> Feed:
    """Return the feed, for the gateway to open and close."""
    documents = JobDocuments(names, settings.mlflow_shown_at)
    return Feed(settings.redis_url.get_secret_value(), engine, documents)
