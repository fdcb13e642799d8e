"""Errors that name the wrong setting of a PgBouncer between the workers and Postgres."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from tests.factories import Sender, drain, logs, rows
from tests.pgbouncer import PgBouncer
from tests.tls_servers import settings_of
from trainwire.gateway.http.problems import problem_of
from trainwire.schemas.tables import training_logs
from trainwire.stack.database import open_database
from trainwire.stack.errors import Problem
from trainwire.stores.postgres.connections import open_engine
from trainwire.workers.errors import Unavailable
from trainwire.workers.resources import Resources

ROUNDS = 10
"""More than the uses after which psycopg prepares a statement."""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Return a stack of contexts that end with the test."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def address(resources: Resources) -> str:
    """The database without a pooler."""
    return resources.settings.database_url.get_secret_value()


def through(pooler: PgBouncer, resources: Resources, stack: ExitStack, **others: Any) -> Resources:
    """Return the resources of another process that connects to Postgres through the pooler."""
    settings = settings_of(resources, database_url=pooler.url, **others)
    engine = open_engine(settings)
    stack.callback(engine.dispose)
    return Resources(settings, engine, resources.redis)


def drain_in_turn(resources: Resources, sender: Sender, *processes: Resources) -> list[str]:
    """Let two processes drain in turn; return the text of their errors."""
    said = []
    # The first drain of a stream needs two connections at once, and there is only one.
    drain(resources)
    for process in processes:
        for number in range(ROUNDS):
            said.append(f"{id(process)} {number}")
            sender.send(logs(said[-1]))
            drain(process)
    return said


def test_drains_by_transaction_without_the_setting(
    resources: Resources, sender: Sender, address: str, stack: ExitStack, tmp_path: Path
) -> None:
    """A second process finds the prepared statements of the first: its drain fails with the setting to change."""
    pooler = stack.enter_context(PgBouncer(tmp_path, address, most=1))
    processes = [through(pooler, resources, stack) for _ in range(2)]
    with pytest.raises(Unavailable, match=r"set DATABASE_PREPARED_STATEMENTS=false here, or pool_mode = session"):
        drain_in_turn(resources, sender, *processes)


def test_drains_by_transaction_with_the_setting(
    resources: Resources, sender: Sender, address: str, stack: ExitStack, tmp_path: Path
) -> None:
    """The same with DATABASE_PREPARED_STATEMENTS=false stores everything."""
    pooler = stack.enter_context(PgBouncer(tmp_path, address, most=1))
    processes = [through(pooler, resources, stack, database_prepared_statements=False) for _ in range(2)]
    said = drain_in_turn(resources, sender, *processes)
    assert rows(resources.engine, training_logs, "content") == said


def test_a_pooler_that_refuses_our_parameters(
    resources: Resources, address: str, stack: ExitStack, tmp_path: Path
) -> None:
    """Without `ignore_startup_parameters` in the pooler, errors of workers and commands name the setting."""
    behind = through(stack.enter_context(PgBouncer(tmp_path, address, settings={})), resources, stack)
    with pytest.raises(Unavailable, match="set ignore_startup_parameters = options in its file"):
        drain(behind)
    refusal = pytest.raises(Problem, match="unsupported startup parameter: options: PgBouncer refuses it")
    with refusal, open_database(behind.settings) as engine:
        engine.connect()


@pytest.mark.parametrize("statement", ["PREPARE a AS SELECT 1; PREPARE a AS SELECT 1", "EXECUTE b"])
def test_a_request_that_meets_the_statements_of_others(engine: Engine, statement: str) -> None:
    """The gateway reports a temporary error of Postgres, not a fault of its own."""
    with engine.connect() as connection, pytest.raises(DBAPIError) as caught:
        connection.execute(text(statement))
    assert problem_of(caught.value).status == 503
