"""A connection to Postgres that is lost while a chart or a download is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError
from starlette.responses import Response

from tests.factories import Sender, drain, logs, metrics
from tests.gateway_server import gateway_settings
from trainwire.gateway.resources import Resources as GatewayResources
from trainwire.gateway.resources import open_resources
from trainwire.gateway.routes.log_routes import download
from trainwire.gateway.routes.metric_routes import download_metrics
from trainwire.stores.rows.log_pages import LineFilter
from trainwire.stores.rows.metric_series import _snapshot
from trainwire.workers.resources import Resources


def test_the_error_of_a_lost_connection_is_not_replaced(resources: Resources) -> None:
    """The error of Postgres is raised, for which the gateway answers 503, and not one about the transaction."""
    autocommit = resources.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    with autocommit as connection, pytest.raises(OperationalError), _snapshot(connection):
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


@pytest.mark.parametrize(
    "begin",
    [
        lambda resources, job: download(resources, LineFilter(job_id=job)),
        download_metrics,
    ],
    ids=["logs", "metrics"],
)
def test_a_download_that_loses_postgres_at_its_first_rows_has_not_begun(
    begin: Callable[[GatewayResources, int], Response],
    sender: Sender,
    resources: Resources,
    database_url: str,
    redis_url: str,
) -> None:
    """The error is raised by the route, for which the gateway answers 503, and not within the response."""
    sender.send(logs("line"))
    sender.send(metrics(loss=1.0))
    drain(resources, "logs")
    drain(resources, "metrics")
    found = open_resources(gateway_settings(database_url, redis_url))

    @event.listens_for(found.engine, "before_cursor_execute")
    def end_connection(_: object, cursor: Any, statement: str, *__: object) -> None:
        if "FROM training_logs" in statement or "FROM training_metrics" in statement:
            cursor.connection.close()

    try:
        with pytest.raises(OperationalError):
            begin(found, 1)
    finally:
        found.close()
