"""A connection to Postgres that is lost while a chart is read."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from trainwire.stores.rows.metric_series import _snapshot
from trainwire.workers.resources import Resources


def test_the_error_of_a_lost_connection_is_not_replaced(resources: Resources) -> None:
    """The error of Postgres is raised, for which the gateway answers 503, and not one about the transaction."""
    autocommit = resources.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    with autocommit as connection, pytest.raises(OperationalError), _snapshot(connection):
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
